"""RLHF end to end in one command: base → SFT → reward model → best-of-n, PPO, DPO, SimPO, GRPO.

``python -m rlhf_minimal demo`` aligns the kitchen assistant by each method, measures every stage
against the gold reward, and sweeps PPO's β until the policy falls apart. The stages up to the
reward model run one after the other; what follows is independent and runs in several processes.
Every process has one thread: models this small lose more to a second one than they gain, and a run
repeats to the last digit however many cores there are.

Leaves out: a search for hyper-parameters; those below were chosen by hand on seeds 0 and 1, by the
win rates that the demo reports.
"""

import copy
import functools
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from rlhf_minimal.dpo import train_dpo, train_simpo
from rlhf_minimal.gold_reward import gold_reward
from rlhf_minimal.grpo import train_grpo
from rlhf_minimal.kitchen import (
    SHOWN_PROMPTS,
    Kitchen,
    KitchenSizes,
    evaluate,
    sample_answers,
)
from rlhf_minimal.rlhf import train_rlhf
from rlhf_minimal.rollouts import best_of_n, best_of_n_kl
from rlhf_minimal.training import adamw

__all__ = ["run_demo"]

FAST = KitchenSizes(
    documents=2000,
    base_steps=100,
    demonstrations=1500,
    sft_steps=60,
    comparison_prompts=60,
    reward_steps=30,
    training_prompts=100,
    evaluation_prompts=40,
)
SWEEP = (0.4, 0.2, 0.1, 0.05, 0.0)  # of PPO's β; 0.2 is the one to compare with other methods


def ppo_policy(kitchen: Kitchen, **options):
    """PPO against the reward model, whose features its value function reads."""
    return against_proxy(kitchen, train_rlhf, value_model=kitchen.reward_model.critic(), **options)


def grpo_policy(kitchen: Kitchen, **options):
    """GRPO against the reward model; its β prices KL in standard deviations of a group."""
    return against_proxy(kitchen, train_grpo, beta=0.45, **options)


def against_proxy(kitchen: Kitchen, train, **options):
    """Reinforcement learning from a copy of the SFT model on; the policy and its history."""
    policy = copy.deepcopy(kitchen.sft)
    options |= dict(seed=kitchen.seed, watch=kitchen.watch_gold, show_progress=False)
    options |= kitchen.sampling()
    return policy, train(policy, kitchen.sft, kitchen.score, kitchen.prompts, **options)


def dpo_policy(kitchen: Kitchen, steps: int):
    """DPO on the same comparisons that taught the reward model."""
    policy = copy.deepcopy(kitchen.sft)
    options = pair_options(kitchen, steps)
    return policy, train_dpo(policy, kitchen.sft, kitchen.pairs, beta=0.4, **options)


def simpo_policy(kitchen: Kitchen, steps: int):
    """SimPO on the same comparisons: no reference at all."""
    policy = copy.deepcopy(kitchen.sft)
    options = pair_options(kitchen, steps)
    return policy, train_simpo(policy, kitchen.pairs, beta=4.0, margin=1.0, **options)


def pair_options(kitchen: Kitchen, steps: int) -> dict:
    """What DPO and SimPO share: sixteen prompts a step, with all six comparisons of each."""
    options = dict(steps=steps, batch_size=96, lr=5e-4, schedule="linear")
    return options | dict(seed=kitchen.seed, show_progress=False)


def jobs(fast: bool) -> dict:
    """Name -> (method for the figures' colours, how to train it), in the table's order."""
    ppo, dpo, simpo = (5, 10, 10) if fast else (70, 200, 150)
    sweep = {f"PPO β={beta:g}": ("PPO", ppo_policy, dict(steps=ppo, beta=beta)) for beta in SWEEP}
    return sweep | {
        "GRPO": ("GRPO", grpo_policy, dict(steps=ppo)),
        "DPO": ("DPO", dpo_policy, dict(steps=dpo)),
        "SimPO": ("SimPO", simpo_policy, dict(steps=simpo)),
        "best of 4": ("best-of-n", None, dict(n=4)),
        "best of 16": ("best-of-n", None, dict(n=16)),
    }


def run_job(name: str, fast: bool, kitchen_file: str) -> dict:
    """Train one method in a process of its own and measure it; a row of the table."""
    torch.set_num_threads(1)
    kitchen = torch.load(kitchen_file, weights_only=False)
    method, train, options = jobs(fast)[name]
    started = time.perf_counter()
    if train is None:
        return best_of_n_row(kitchen, name, options["n"], started)
    policy, history = train(kitchen, **options)
    seconds = time.perf_counter() - started
    row = measured_row(kitchen, name, method, policy, seconds)
    curve = ("step", "score", "gold", "kl")
    row["curve"] = [{k: step[k] for k in curve} for step in history.rows if "gold" in step]
    return row | options


def best_of_n_row(kitchen: Kitchen, name: str, n: int, started: float) -> dict:
    """Best-of-n trains nothing; its KL is the bound log n − (n − 1)/n."""
    generator = torch.Generator().manual_seed(kitchen.seed + 9)
    sampling = kitchen.sampling() | dict(generator=generator)
    choose = functools.partial(_choose, kitchen, n, sampling)
    row = measured_row(kitchen, name, "best-of-n", kitchen.sft, None, choose)
    return row | dict(n=n, kl=best_of_n_kl(n), seconds=time.perf_counter() - started)


def _choose(kitchen, n, sampling, prompts):
    return best_of_n(kitchen.sft, kitchen.score, prompts, n, **sampling)


def measured_row(kitchen: Kitchen, name, method, policy, seconds, choose=None) -> dict:
    """A row of the table: training prompts, held-out prompts, and three answers to read."""
    measured = evaluate(kitchen, policy, choose=choose)
    held_out = evaluate(kitchen, policy, held_out=True, choose=choose)
    return dict(
        stage=name,
        method=method,
        **measured,
        held_out={key: held_out[key] for key in ("gold", "win_rate", "proxy")},
        seconds=seconds,
        samples=sample_answers(kitchen, policy, choose),
    )


def run_demo(seed: int = 0, fast: bool = False, workers: int | None = None, show=print) -> dict:
    """Run everything; returns what ``demo.json`` holds.

    Args:
        workers: processes for the methods; as many as there are cores, at most four, by default.
        show: called with each line of progress.
    """
    began = time.perf_counter()
    torch.set_num_threads(1)
    workers = workers or min(os.cpu_count() or 1, 4)
    context = multiprocessing.get_context("spawn")  # started afresh: torch must not be forked
    with (
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        tempfile.TemporaryDirectory() as folder,
    ):
        for _ in range(workers):
            pool.submit(warm_up)
        kitchen, rows, facts = prepare(seed, FAST if fast else KitchenSizes(), show)
        kitchen_file = str(Path(folder) / "kitchen.pt")
        torch.save(kitchen, kitchen_file)
        done = run_jobs(pool, list(jobs(fast)), fast, kitchen_file, show)
    rows += [done[name] for name in jobs(fast)]
    return dict(
        seed=seed,
        fast=fast,
        workers=workers,
        prompts=list(SHOWN_PROMPTS),
        facts=facts,
        rows=rows,
        seconds=time.perf_counter() - began,
    )


def prepare(seed: int, sizes: KitchenSizes, show):
    """Base, SFT, comparisons and reward model, one after the other."""
    kitchen = Kitchen(seed, sizes)
    clock = time.perf_counter
    started = clock()
    kitchen.train_base()
    base_seconds = clock() - started
    started = clock()
    kitchen.train_sft()
    sft_seconds = clock() - started
    show(f"base model {base_seconds:.0f} s, SFT {sft_seconds:.0f} s")
    started = clock()
    agreement = kitchen.collect_preferences()
    show(
        f"{len(kitchen.pairs)} comparisons {clock() - started:.0f} s; "
        f"the annotator agrees with the gold reward on {agreement:.0%}"
    )
    started = clock()
    history = kitchen.train_reward_model()
    accuracy = history.mean("accuracy", last=30)
    show(f"reward model {clock() - started:.0f} s; accuracy while training {accuracy:.0%}")
    rows = [
        measured_row(kitchen, "base", "base", kitchen.base, base_seconds),
        measured_row(kitchen, "SFT", "SFT", kitchen.sft, sft_seconds),
    ]
    facts = dict(comparisons=len(kitchen.pairs), agreement=agreement, reward_accuracy=accuracy)
    return kitchen, rows, facts


def warm_up() -> None:
    """What a new process loads once, while the first stages still train."""
    torch.set_num_threads(1)
    adamw(torch.nn.Linear(1, 1), lr=1.0)
    gold_reward(SHOWN_PROMPTS[0], "")


def run_jobs(pool, names, fast, kitchen_file, show) -> dict:
    """Every job's row, from a pool of processes; the longest goes first, lest all wait for it."""
    done = {}
    names = sorted(names, key=lambda name: name != "best of 16")
    running = {pool.submit(run_job, name, fast, kitchen_file): name for name in names}
    for future in as_completed(running):
        row = done[running[future]] = future.result()
        show(f"{row['stage']}: gold {row['gold']['mean']:.2f} in {row['seconds']:.0f} s")
    return done
