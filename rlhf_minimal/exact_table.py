"""How far each method ends from the optimum: one table of the exact world, several seeds a row.

Leaves out: a search for the best settings of each method. They share a world, a start, Adam and a
learning rate that falls to 0; what separates them is what each optimises and on what data.
"""

from functools import partial

import torch

from rlhf_minimal.dpo import dpo_loss, ipo_loss
from rlhf_minimal.exact import make_world
from rlhf_minimal.exact_methods import (
    population_preferences,
    sample_preferences,
    train_exact_gradient,
    train_group,
    train_on_preferences,
    train_ppo_exact,
)
from rlhf_minimal.grpo import group_relative_advantages
from rlhf_minimal.history import progress

__all__ = ["exact_table", "markdown", "policy_gradient_methods", "preference_methods"]

PAIRS = (1_000, 10_000, 100_000)


def policy_gradient_methods() -> dict:
    """Name → (``run(world, seed=…, steps=…)``, what decides where it ends)."""
    no_std = partial(group_relative_advantages, normalize_by_std=False)
    std = group_relative_advantages
    return {
        "PPO": (train_ppo_exact, "unbiased where λ = 1; noise vanishes with the advantages"),
        "RLOO": (train_group, "unbiased; at π* every shaped reward is equal, so noise vanishes"),
        "GRPO without std": (
            partial(train_group, advantages=no_std),
            "RLOO's gradient times (G − 1)/G: the same end",
        ),
        "GRPO": (
            partial(train_group, advantages=std),
            "direction biased, end the same: where all shaped rewards are equal",
        ),
        "RLOO, k2 in the loss": (
            partial(train_group, kl_in="k2"),
            "unbiased; noise stays at π*, only the falling learning rate quiets it",
        ),
        "RLOO, k3 in the loss": (
            partial(train_group, kl_in="k3"),
            "k3's gradient is that of KL(π_ref‖π): another objective, another optimum",
        ),
        "GRPO, k2 in the loss": (
            partial(train_group, advantages=std, kl_in="k2"),
            "reward divided by its deviation, KL not: β shrinks as answers grow alike",
        ),
        "GRPO, k2 in the loss, groups of 64": (
            partial(train_group, advantages=std, kl_in="k2", group=64),
            "the same with less noise: it collapses on the best answers",
        ),
        "GRPO, k3 in the loss": (
            partial(train_group, advantages=std, kl_in="k3"),
            "both of these; this is GRPO as published, its estimate taken over whole answers",
        ),
    }


def preference_methods(beta: float) -> dict:
    """Name → (keyword arguments of ``train_on_preferences``, what decides where it ends)."""
    return {
        "DPO": ({}, "no bias, but noisy labels: an answer that never lost is pushed without end"),
        "DPO, smoothing 0.1": (
            {"loss": partial(dpo_loss, label_smoothing=0.1)},
            "margins pulled towards 0: a bias that stays, less to fit",
        ),
        "IPO": ({"loss": ipo_loss}, "its β is another: margins of about a quarter of DPO's"),
        "IPO, β/4": (
            {"loss": ipo_loss, "beta": beta / 4},
            "margins as DPO's where small, short of them where large",
        ),
    }


def exact_table(seeds=range(5), quick: bool = False, show_progress: bool = False) -> list[dict]:
    """Train everything in one world and measure KL(π‖π*) at the end, exactly.

    Args:
        seeds: of what is sampled, answers or comparisons; the world is always the same.
        quick: a tenth of the policy-gradient steps, a third of the others, no 100,000 comparisons.

    Returns:
        A row a method and amount of data: ``method``, ``data`` ("exact", "sampled" or comparisons),
        ``kl`` (a number a seed, nats), ``steps`` and ``curves`` (KL at those steps, a list a seed),
        ``why``. The first row is the reference, untrained.
    """
    world = make_world()
    distance = world.distance(world.reference()).item()
    rows = [_row("reference", "–", "where all start", [distance], [0], [[distance]])]
    jobs = _sampling_jobs(world, seeds, quick) + _preference_jobs(world, seeds, quick)
    for name, data, why, runs in progress(jobs, "exact world", show_progress):
        histories = [run() for run in runs]
        curves = [history["kl"] for history in histories]
        ends = [history.facts.get("kl", history["kl"][-1]) for history in histories]
        rows.append(_row(name, data, why, ends, histories[0]["step"], curves))
    return rows


def _row(method, data, why, kl, steps, curves) -> dict:
    return dict(method=method, data=data, kl=kl, steps=steps, curves=curves, why=why)


def _sampling_jobs(world, seeds, quick):
    """(name, data, why, runs): a run is a call without arguments that returns a history."""
    exact = [lambda: train_exact_gradient(world, steps=500 if quick else 2000)[1]]
    jobs = [("exact gradient", "exact", "no noise, no bias: only time", exact)]
    for name, (train, why) in policy_gradient_methods().items():
        steps = {} if not quick else {"steps": 100 if train is train_ppo_exact else 200}
        runs = [lambda t=train, s=seed, k=steps: t(world, seed=s, **k)[1] for seed in seeds]
        jobs.append((name, "sampled", why, runs))
    return jobs


def _preference_jobs(world, seeds, quick):
    """As :func:`_sampling_jobs`, for losses on comparisons."""
    everything, jobs = population_preferences(world), []
    steps = {"steps": 100} if quick else {}
    for name, (options, why) in preference_methods(world.beta).items():
        options = {**options, **steps}
        run = partial(train_on_preferences, world, everything, **options)
        jobs.append((name, "all pairs", why, [lambda run=run: run()[1]]))
        for count in PAIRS[: 2 if quick else 3]:
            runs = [partial(_on_sample, world, count, seed, options) for seed in seeds]
            jobs.append((name, f"{count:,} pairs", why, runs))
    for count in PAIRS[: 2 if quick else 3]:
        runs = [partial(_stopped_early, world, count, seed, steps) for seed in seeds]
        why = "DPO on 80%, stopped where the loss on the other 20% is least"
        jobs.append(("DPO, stopped early", f"{count:,} pairs", why, runs))
    return jobs


def _on_sample(world, count, seed, options):
    pairs = sample_preferences(world, count, torch.Generator().manual_seed(seed))
    return train_on_preferences(world, pairs, **options)[1]


def _stopped_early(world, count, seed, options):
    """DPO whose distance is taken where held-out comparisons, and not π*, say to stop."""
    generator = torch.Generator().manual_seed(seed)
    pairs = sample_preferences(world, count * 4 // 5, generator)
    held_out = sample_preferences(world, count // 5, generator)
    history = train_on_preferences(world, pairs, held_out=held_out, **options)[1]
    losses = history["held_out_loss"]
    history.facts["kl"] = history["kl"][losses.index(min(losses))]
    return history


def markdown(rows) -> str:
    """The table as Markdown: mean, least and greatest distance over the seeds, in nats.

    >>> row = dict(method="DPO", data="1,000 pairs", kl=[1.0, 3.0], why="few labels")
    >>> print(markdown([row]))
    | method | data | KL(π‖π*), mean | least – greatest (seeds) | what decides it |
    | --- | --- | ---: | --- | --- |
    | DPO | 1,000 pairs | 2 | 1 – 3 (2) | few labels |
    """
    lines = [
        "| method | data | KL(π‖π*), mean | least – greatest (seeds) | what decides it |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for row in rows:
        kl, span = row["kl"], "–"
        if len(kl) > 1:
            span = f"{min(kl):.2g} – {max(kl):.2g} ({len(kl)})"
        mean = f"{sum(kl) / len(kl):.2g}"
        lines.append(f"| {row['method']} | {row['data']} | {mean} | {span} | {row['why']} |")
    return "\n".join(lines)
