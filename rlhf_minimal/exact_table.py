"""How far each method ends from the optimum: one table of the exact world, several seeds a row.

Leaves out: a search for the best settings of each method. They share a world, a start, Adam and a
learning rate that falls to 0; what separates them is what each optimises and on what data.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from rlhf_minimal.dpo import dpo_loss, ipo_loss
from rlhf_minimal.exact import make_world
from rlhf_minimal.exact_methods import train_exact_gradient, train_group, train_ppo_exact
from rlhf_minimal.exact_preferences import (
    population_preferences,
    sample_preferences,
    train_on_preferences,
    without_label_noise,
)
from rlhf_minimal.grpo import group_relative_advantages
from rlhf_minimal.history import progress

__all__ = ["exact_table", "markdown", "policy_gradient_methods", "preference_methods"]

PAIRS = (1_000, 10_000, 100_000)  # comparisons a prompt


def policy_gradient_methods() -> dict:
    """Name → (``run(world, seed=…, steps=…)``, what decides where it ends).

    GRPO without its division by the deviation is not among them: its advantages are RLOO's times
    (G − 1)/G, and Adam takes no notice of a factor.
    """
    std = group_relative_advantages
    return {
        "PPO": (train_ppo_exact, "unbiased where λ = 1; noise vanishes with the advantages"),
        "RLOO": (train_group, "unbiased; at π* every shaped reward is equal, so noise vanishes"),
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
        "RLOO, ratio·k3 in the loss": (
            partial(train_group, kl_in="ratio k3"),
            "k3 times π/π_old: the KL's gradient again, with noise that stays",
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
    """Name → (keyword arguments of ``train_on_preferences``, data sizes, what decides the end)."""
    smoothed, sizes = partial(dpo_loss, label_smoothing=0.1), ("all", *PAIRS)
    return {
        "DPO": ({}, sizes, "no bias; what the labels' noise leaves after 300 steps on all of them"),
        "DPO, five times the steps": (
            {"steps": 1500},
            PAIRS[:1],
            "it never ends: an answer that happened never to lose is pushed on and on",
        ),
        "DPO, labels without noise": (
            {"noiseless": True},
            PAIRS[:2],
            "the same pairs with each label's probability: the noise was all of the error",
        ),
        "DPO, one pass": (
            {"batch_size": 256},
            PAIRS,
            "batches of 256, each comparison seen once: no noise is learnt by heart",
        ),
        "DPO, stopped early": (
            {"held_out": 0.2},
            PAIRS[:2],
            "DPO on 80%, stopped where the loss on the other 20% is least",
        ),
        "DPO, smoothing 0.1": (
            {"loss": smoothed},
            sizes,
            "margins pulled towards 0: a bias that stays, less noise to fit",
        ),
        "IPO": (
            {"loss": ipo_loss},
            ("all", PAIRS[0]),
            "its β is another: margins of about a quarter of DPO's",
        ),
        "IPO, β/4": (
            {"loss": ipo_loss, "beta": beta / 4},
            sizes,
            "margins as DPO's where small, short of them where large",
        ),
    }


def exact_table(
    seeds=range(5), quick: bool = False, show_progress: bool = False, processes: int = 1
) -> list[dict]:
    """Train everything in one world and measure KL(π‖π*) at the end, exactly.

    Args:
        seeds: of what is sampled, answers or comparisons; the world is always the same.
        quick: a tenth of the policy-gradient steps, a third of the others, no 100,000 comparisons.
        processes: trainings at a time, each with one thread; with 1 they run in this process.

    Returns:
        A row a method and amount of data: ``method``, ``data`` ("exact", "sampled" or comparisons
        a prompt), ``kl`` (a number a seed, nats), ``steps`` and ``curves`` (KL at those steps, a
        list a seed), ``why``. The first row is the reference, untrained.
    """
    world = make_world()
    distance = world.distance(world.reference()).item()
    rows = [_row("reference", "–", "where all start", [(distance, [0], [distance])])]
    jobs = _sampling_jobs(seeds, quick) + _preference_jobs(world.beta, seeds, quick)
    runs = [run for *_, runs in jobs for run in runs]
    ends = iter(_run_all(runs, processes, show_progress))
    for name, data, why, runs in jobs:
        rows.append(_row(name, data, why, [next(ends) for _ in runs]))
    return rows


def _row(method, data, why, ends) -> dict:
    kl, steps, curves = zip(*ends, strict=True)
    return dict(method=method, data=data, kl=list(kl), steps=steps[0], curves=list(curves), why=why)


def _run_all(runs, processes, show_progress) -> list:
    """What each run returns, in order; several at a time in processes of their own."""
    if processes <= 1:
        return [run() for run in progress(runs, "exact world", show_progress)]
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,))
    try:
        ends = [pool.submit(run) for run in runs]
        return [end.result() for end in progress(ends, "exact world", show_progress)]
    finally:
        pool.shutdown(cancel_futures=True)  # after a Ctrl-C, wait for what runs and start no more


def _sampling_jobs(seeds, quick):
    """(name, data, why, runs): a run is a call without arguments, see :func:`_policy_gradient`."""
    exact = partial(_policy_gradient, train_exact_gradient, steps=500 if quick else 2000)
    jobs = [("exact gradient", "exact", "no noise, no bias: only time", [exact])]
    for name, (train, why) in policy_gradient_methods().items():
        steps = {} if not quick else {"steps": 100 if train is train_ppo_exact else 200}
        runs = [partial(_policy_gradient, train, seed=seed, **steps) for seed in seeds]
        jobs.append((name, "sampled", why, runs))
    return jobs


def _preference_jobs(beta, seeds, quick):
    """As :func:`_sampling_jobs`, for losses on comparisons."""
    jobs = []
    for name, (options, sizes, why) in preference_methods(beta).items():
        if quick:
            options = {**options, "steps": options.get("steps", 300) // 3}
        for size in sizes:
            if size == "all":
                jobs.append((name, "all pairs", why, [partial(_dpo, None, 0, **options)]))
            elif not (quick and size == PAIRS[-1]):
                runs = [partial(_dpo, size, seed, **options) for seed in seeds]
                jobs.append((name, f"{size:,} a prompt", why, runs))
    return jobs


def _policy_gradient(train, **options):
    """Train in the world; KL(π‖π*) at the end, and its curve as (steps, distances)."""
    history = train(make_world(), **options)[1]
    return history["kl"][-1], history["step"], history["kl"]


def _dpo(size, seed, noiseless=False, held_out=0.0, **options):
    """The same, on ``size`` comparisons a prompt, or all there are where it is ``None``.

    With a share ``held_out``, the distance is taken where comparisons not trained on, and not π*,
    say to stop.
    """
    world, generator = make_world(), torch.Generator().manual_seed(seed)
    if size is None:
        data = population_preferences(world)
    else:
        count = size * len(world.rewards)
        data = sample_preferences(world, count - round(held_out * count), generator)
    if noiseless:
        data = without_label_noise(world, data)
    if held_out:
        options["held_out"] = sample_preferences(world, round(held_out * count), generator)
    history = train_on_preferences(world, data, **options)[1]
    end = -1
    if held_out:
        losses = history["held_out_loss"]
        end = losses.index(min(losses))
    return history["kl"][end], history["step"], history["kl"]


def markdown(rows) -> str:
    """The table as Markdown: mean, least and greatest distance over the seeds, in nats.

    >>> row = dict(method="DPO", data="10 pairs", kl=[1.0, 3.0], why="few")
    >>> print(markdown([row]))
    | method | data | KL(π‖π*), mean | least – greatest (seeds) | what decides it |
    | --- | --- | ---: | --- | --- |
    | DPO | 10 pairs | 2 | 1 – 3 (2) | few |
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
