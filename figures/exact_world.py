"""Distance from the exact optimum: what each method reaches, and how many comparisons DPO needs.

python figures/exact_world.py --record    train everything again (two minutes), then draw
python figures/exact_world.py             draw from the numbers in exact_world.json
"""

import argparse
import json
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from rlhf_minimal.exact import make_world
from rlhf_minimal.exact_preferences import sample_preferences, train_on_preferences
from rlhf_minimal.exact_table import PAIRS, exact_table, markdown
from rlhf_minimal.history import write_json
from rlhf_minimal.plots import COLOURS

HERE = Path(__file__).resolve().parent
SMOOTHING = "#CC79A7"  # reddish purple, which no method of this figure has
LEFT = {  # (method, data) → line style
    ("exact gradient", "exact"): "-",
    ("DPO", "all pairs"): "-",
    ("PPO", "sampled"): "-",
    ("RLOO", "sampled"): "-",
    ("GRPO", "sampled"): "-",
    ("RLOO, k3 in the loss", "sampled"): "--",
    ("GRPO, k3 in the loss", "sampled"): "--",
}
RIGHT = {
    "DPO": "-",
    "DPO, one pass": "--",
    "DPO, stopped early": ":",
    "DPO, smoothing 0.1": "-",
    "IPO, β/4": ":",
}
LABELS = {"DPO": "DPO on all pairs", "GRPO": "GRPO, KL in the reward"}


def dpo_end(world, total: int, seed: int) -> float:
    """Where DPO ends on ``total`` sampled comparisons of this world."""
    pairs = sample_preferences(world, total, torch.Generator().manual_seed(seed))
    return train_on_preferences(world, pairs)[1]["kl"][-1]


def spread_over_prompts() -> list[dict]:
    """10,000 comparisons for one prompt, or shared by more: what counts is how many each gets."""
    rows = []
    for prompts in (1, 4, 16):
        ends = [dpo_end(make_world(prompts=prompts), 10_000, seed) for seed in range(5)]
        rows.append({"prompts": prompts, "a_prompt": 10_000 // prompts, "kl": ends})
    return rows


def other_worlds() -> list[dict]:
    """DPO in five worlds of one prompt: how much the numbers are a matter of the world."""
    rows = []
    for number in range(5):
        world = make_world(number, prompts=1)
        kl = {str(total): dpo_end(world, total, seed=0) for total in PAIRS}
        begins = world.distance(world.reference()).item()
        rows.append({"world": number, "prompts": 1, "begins": begins, "kl": kl})
    return rows


def record(path) -> None:
    """Run the table with five seeds; keep the curves of what is drawn, to four digits."""
    torch.set_num_threads(1)
    rows = exact_table(range(5), show_progress=True, processes=os.cpu_count())
    for row in rows:
        if (row["method"], row["data"]) not in LEFT:
            del row["steps"], row["curves"]
        else:
            row["curves"] = [[float(f"{kl:.4g}") for kl in curve] for curve in row["curves"]]
    numbers = {"seeds": list(range(5)), "unit": "nats an answer", "rows": rows}
    write_json(path, {**numbers, "spread": spread_over_prompts(), "worlds": other_worlds()})


def colour_of(method: str) -> str:
    """The method's colour of the course, whatever variant of it this is."""
    if "smoothing" in method:
        return SMOOTHING
    return COLOURS.get(method.split(",")[0], COLOURS["base"])


def draw_training(axes, rows) -> None:
    """KL to π* against the share of the training done: the mean over seeds, and their range."""
    for row in rows:
        style = LEFT.get((row["method"], row["data"]))
        if style is None:
            continue
        steps, curves = torch.tensor(row["steps"]), torch.tensor(row["curves"]).clamp_min(1e-12)
        colour, label = colour_of(row["method"]), LABELS.get(row["method"], row["method"])
        axes.plot(steps, curves.mean(0), style, color=colour, label=label)
        axes.fill_between(steps, curves.amin(0), curves.amax(0), color=colour, alpha=0.3, lw=0)
    axes.set(yscale="log", xlim=(0, 2000), ylim=(1e-11, 9), ylabel="KL(π‖π*), nats an answer")
    axes.set_xlabel("training steps (PPO, RLOO, GRPO: batches of 64 answers)")
    axes.set_title("RLOO, PPO and DPO reach π*; k3 in the loss has another optimum")


def draw_pairs(axes, rows) -> None:
    """Where losses on comparisons end, against the number of comparisons: seeds as dots."""
    start = rows[0]["kl"][0]
    axes.axhline(start, color="0.4", lw=1)
    axes.text(PAIRS[-1] * 1.3, start * 1.08, "the reference, untrained", ha="right", color="0.3")
    for place, (method, style) in enumerate(RIGHT.items()):
        by_data = {row["data"]: row["kl"] for row in rows if row["method"] == method}
        counts = [count for count in PAIRS if f"{count:,} a prompt" in by_data]
        ends = [by_data[f"{count:,} a prompt"] for count in counts]
        at = torch.tensor(counts) * 1.07 ** (place - 2)
        means = [sum(kl) / len(kl) for kl in ends]
        axes.plot(at, means, style, color=colour_of(method), label=method)
        for x, kl in zip(at, ends, strict=True):
            axes.plot([x] * len(kl), kl, "o", ms=3, color=colour_of(method), alpha=0.6)
    axes.set(xscale="log", yscale="log", xlabel="sampled comparisons a prompt")
    axes.set_ylabel("KL(π‖π*) at the end, nats an answer (dots: seeds)")
    axes.set_title("On 1,000 noisy labels DPO ends farther than it began")
    axes.legend(frameon=False, loc="lower left")


def draw(rows, path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    draw_training(left, rows)
    draw_pairs(right, rows)
    left.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.0))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="train everything again first")
    numbers = HERE / "exact_world.json"
    if parser.parse_args().record:
        record(numbers)
    recorded = json.loads(numbers.read_text(encoding="utf-8"))
    draw(recorded["rows"], HERE / "exact_world.png")
    print(markdown(recorded["rows"]))
    for row in recorded["spread"]:
        ends = " ".join(f"{kl:.2g}" for kl in row["kl"])
        print(f"DPO on 10,000 comparisons over {row['prompts']} prompts: {ends}")
    for row in recorded["worlds"]:
        ends = ", ".join(f"{kl:.2g} at {total}" for total, kl in row["kl"].items())
        print(f"DPO in world {row['world']}, one prompt, from {row['begins']:.2f}: {ends}")


if __name__ == "__main__":
    main()
