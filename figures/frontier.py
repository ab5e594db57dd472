"""The frontier: gold reward against distance from the SFT model, five methods, several seeds.

python figures/frontier.py --record    train everything again (a quarter of an hour on two
                                       cores), then draw
python figures/frontier.py             draw from the numbers in frontier.json

Every seed has a kitchen of its own: other initial weights, corpora, samples and labels. All of its
methods learn from the same comparisons, PPO and best-of-n by way of a reward model, and are
measured on held-out prompts. ``frontier.json`` also holds what lesson 07 shows of label noise
and of answers' length. The settings are the demo's, each method's strength is swept.
"""

import argparse
import copy
import functools
import json
import math
import os
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from matplotlib.figure import Figure

from rlhf_minimal.demo import pair_options, ppo_policy
from rlhf_minimal.dpo import dpo_loss, ipo_loss, reference_log_probs, train_dpo, train_simpo
from rlhf_minimal.gold_reward import Annotator
from rlhf_minimal.history import write_json
from rlhf_minimal.kitchen import Kitchen, evaluate
from rlhf_minimal.pairs import train_on_pairs
from rlhf_minimal.plots import COLOURS
from rlhf_minimal.rollouts import best_of_n, best_of_n_kl

NUMBERS = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2, 3)
SWEEPS = {  # method → its strengths; a larger β stays closer to the SFT model
    "PPO": (0.8, 0.4, 0.2, 0.1, 0.05),
    "DPO": (1.6, 0.8, 0.4, 0.2, 0.1),
    "IPO": (0.8, 0.4, 0.2, 0.1, 0.05),
    "SimPO": (1.0, 2.0, 4.0, 8.0),
    "best-of-n": (2, 4, 8, 16),
}
NOISE = [(flipped, smoothing) for flipped in (0.0, 0.2, 0.4) for smoothing in (0.0, 0.2)]
LENGTH_TASTE = 0.2  # of gold reward a word, for the annotator who likes long answers
MARKERS = {"PPO": "o", "DPO": "^", "IPO": "s", "SimPO": "v", "best-of-n": "D"}


def train(kitchen: Kitchen, method: str, strength: float, pairs=None, reference=None, loss=None):
    """A copy of the SFT model, trained by one method on its comparisons."""
    pairs, policy = pairs or kitchen.pairs, copy.deepcopy(kitchen.sft)
    if method == "PPO":
        return ppo_policy(kitchen, steps=70, beta=strength)[0]
    if method == "SimPO":
        options = pair_options(kitchen, 150)
        train_simpo(policy, pairs, beta=strength, margin=strength / 4, **options)
    elif method == "sums, no reference":
        def pair_loss(log_probs, rows):
            return dpo_loss(*log_probs[:2], *map(torch.zeros_like, log_probs[:2]), strength), {}

        train_on_pairs(policy, pairs, pair_loss, **pair_options(kitchen, 150))
    else:
        loss = loss or {"DPO": dpo_loss, "IPO": ipo_loss}[method]
        options = pair_options(kitchen, 200)
        train_dpo(policy, reference, pairs, loss=loss, beta=strength, **options)
    return policy


def choose_best(kitchen: Kitchen, n: int, prompts):
    """The best of ``n`` SFT answers to each prompt, by the reward model."""
    generator = torch.Generator().manual_seed(kitchen.seed + 9)
    sampling = kitchen.sampling() | dict(generator=generator)
    return best_of_n(kitchen.sft, kitchen.score, prompts, n, **sampling)


def measured(kitchen: Kitchen, policy, choose=None, **facts) -> dict:
    """The facts of a run, and how its policy does on held-out prompts."""
    row = evaluate(kitchen, policy, held_out=True, choose=choose)
    gold, wins = row.pop("gold"), row.pop("win_rate")
    row |= dict(gold=gold["mean"], gold_se=gold["se"], win_rate=wins["mean"])
    return facts | {key: row[key] for key in ("kl", "gold", "gold_se", "win_rate", "length")}


def sweep(kitchen: Kitchen, reference) -> list[dict]:
    """Every method at every strength."""
    rows = []
    for method, strengths in SWEEPS.items():
        for strength in strengths:
            facts = dict(method=method, strength=strength)
            if method == "best-of-n":
                choose = functools.partial(choose_best, kitchen, strength)
                row = measured(kitchen, kitchen.sft, choose, **facts)
                rows.append(row | dict(kl=best_of_n_kl(strength)))
            else:
                policy = train(kitchen, method, strength, reference=reference)
                rows.append(measured(kitchen, policy, **facts))
    return rows


def turned_round(pairs, share: float, seed: int):
    """The pairs, a random ``share`` of them with chosen and rejected changed over, and which."""
    rng = random.Random(f"turned round {seed}")
    turned = [rng.random() < share for _ in pairs]
    return [
        pair._replace(chosen=pair.rejected, rejected=pair.chosen) if turn else pair
        for pair, turn in zip(pairs, turned, strict=True)
    ], turned


def label_noise(kitchen: Kitchen, reference) -> list[dict]:
    """DPO at β = 0.1 on labels a share of which was turned round, with smoothing and without."""
    rows = []
    for share, smoothing in NOISE:
        pairs, turned = turned_round(kitchen.pairs, share, kitchen.seed)
        swap = torch.tensor(turned)[:, None]
        loss = functools.partial(dpo_loss, label_smoothing=smoothing)
        sums = torch.where(swap, reference.flip(1), reference)
        policy = train(kitchen, "DPO", 0.1, pairs, sums, loss)
        rows.append(measured(kitchen, policy, flipped=share, smoothing=smoothing))
    return rows


def answer_length(kitchen: Kitchen, reference) -> list[dict]:
    """Three rewards on the kitchen's labels, and on those of an annotator who likes length."""
    rng, longer = random.Random(kitchen.seed), Annotator(length_taste=LENGTH_TASTE)
    liked, sums = [], reference.clone()
    for row, pair in enumerate(kitchen.pairs):
        prompt, first, second = map(kitchen.tokenizer.decode, pair)
        keep = longer.prefers_first(prompt, first, second, rng)
        liked.append(pair if keep else pair._replace(chosen=pair.rejected, rejected=pair.chosen))
        sums[row] = reference[row] if keep else reference[row].flip(0)
    rows = []
    for taste, pairs, expected in ((0.0, kitchen.pairs, reference), (LENGTH_TASTE, liked, sums)):
        chosen, rejected = (sum(len(p[i]) for p in pairs) / len(pairs) for i in (1, 2))
        for method, beta in (("DPO", 0.4), ("SimPO", 4.0), ("sums, no reference", 0.4)):
            policy = train(kitchen, method, beta, pairs, expected)
            facts = dict(taste=taste, method=method, chosen=chosen, rejected=rejected)
            rows.append(measured(kitchen, policy, **facts))
    return rows


def run_seed(seed: int) -> dict:
    """Everything for one seed."""
    torch.set_num_threads(1)
    kitchen = Kitchen(seed)
    kitchen.train_base(show_progress=False)
    kitchen.train_sft(show_progress=False)
    agreement = kitchen.collect_preferences()
    kitchen.train_reward_model(show_progress=False)
    reference = reference_log_probs(kitchen.sft, kitchen.pairs, kitchen.tokenizer.pad_id)
    return dict(
        seed=seed,
        comparisons=len(kitchen.pairs),
        agreement=agreement,
        sft=measured(kitchen, kitchen.sft),
        sweep=sweep(kitchen, reference),
        label_noise=label_noise(kitchen, reference),
        answer_length=answer_length(kitchen, reference),
    )


def record(processes: int) -> None:
    """Run every seed, several at a time."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(run_seed, SEEDS))
    write_json(NUMBERS, dict(seeds=list(SEEDS), prompts="held out", runs=runs))


def frontier(runs) -> dict:
    """Method → rows of strength, mean √KL, mean gain in gold reward over SFT, both errors."""
    rows = {}
    for method, strengths in SWEEPS.items():
        for strength in strengths:
            x, y = zip(*(_point(run, method, strength) for run in runs), strict=True)
            rows.setdefault(method, []).append((strength, *_mean(x), *_mean(y)))
    return rows


def _point(run, method, strength):
    row = next(r for r in run["sweep"] if (r["method"], r["strength"]) == (method, strength))
    return math.sqrt(row["kl"]), row["gold"] - run["sft"]["gold"]


def _mean(values):
    """Mean over seeds, and its standard error."""
    values = torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def title(rows) -> str:
    """Who gets highest, and who has lost by going farther (0.2 or more of gold reward)."""
    best = {method: max(some, key=lambda row: row[3]) for method, some in rows.items()}
    far = {method: max(some, key=lambda row: row[1]) for method, some in rows.items()}
    fallen = [method for method in rows if best[method][3] - far[method][3] > 0.2]
    top = max(best, key=lambda method: best[method][3])
    return f"{top} gets highest; held too loosely, {', '.join(fallen)} fall (β or n beside points)"


CROWDED = {("PPO", 0.8): (-3, -12), ("PPO", 0.4): (13, 5)}


def beside(method, strength, rising) -> tuple[int, int]:
    """Where a point's number stands, in points from it, so that it lies on no curve."""
    if (method, strength) in CROWDED:
        return CROWDED[method, strength]
    if method == "IPO":
        return -5, 5
    if method == "SimPO":
        return (12, -14) if rising else (-6, -13)
    return (14, -10) if rising else (18, 5)


def draw(runs, path) -> None:
    """All methods in one picture, error bars of one standard error over the seeds."""
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    for method, rows in frontier(runs).items():
        strengths, x, x_error, y, y_error = zip(*rows, strict=True)
        style = dict(color=COLOURS[method], marker=MARKERS[method], capsize=2, label=method)
        axes.errorbar(x, y, y_error, x_error, **style)
        peak = x[y.index(max(y))]
        for strength, *place in zip(strengths, x, y, strict=True):
            axes.annotate(
                f"{strength:g}", place, beside(method, strength, place[0] <= peak), ha="right",
                textcoords="offset points", fontsize=7, color=COLOURS[method],
            )
    axes.axhline(0, color="0.6", lw=1)
    axes.set(
        xlabel="distance from the SFT model, √KL (√nats; best-of-n: its bound)",
        ylabel=f"gold reward gained over SFT (mean of {len(runs)} seeds)",
        title=title(frontier(runs)),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="train everything again first")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="seeds at a time")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.processes)
    runs = json.loads(NUMBERS.read_text(encoding="utf-8"))["runs"]
    for method, rows in frontier(runs).items():
        for strength, kl, kl_error, gain, error in rows:
            print(f"{method:10s} {strength:5g}   √KL {kl:.2f} ± {kl_error:.2f}   "
                  f"gold {gain:+.2f} ± {error:.2f}")
    draw(runs, NUMBERS.with_suffix(".png"))


if __name__ == "__main__":
    main()
