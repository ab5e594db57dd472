"""DPO on SmolLM2-135M-Instruct with human preferences: the training curve, and held-out pairs.

    python figures/smollm2_dpo.py --record out/smollm2_dpo   take the numbers of a finished run
    python figures/smollm2_dpo.py                            draw from what was taken

A run is `python -m rlhf_minimal dpo`, with the settings that its file holds: all weights in
smollm2_dpo.json, 4-bit weights with adapters in smollm2_nf4.json.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from rlhf_minimal.history import write_json
from rlhf_minimal.plots import COLOURS

HERE = Path(__file__).resolve().parent
BEFORE, AFTER = COLOURS["base"], COLOURS["DPO"]
WINDOW = 10


def record(run: Path) -> None:
    """Keep a finished run's result and its curve, to five digits."""
    result = json.loads((run / "result.json").read_text())
    rows = json.loads((run / "history.json").read_text())["rows"]
    if "held_out" not in result:
        raise SystemExit(f"{run} holds no finished run: its result.json has no held-out numbers")
    columns = ("loss", "margin", "accuracy", "chosen_log_ratio", "rejected_log_ratio", "grad_norm")
    result["rows"] = [
        {"step": row["step"]} | {name: float(f"{row[name]:.5g}") for name in columns}
        for row in rows
    ]
    name = "smollm2_nf4" if result["settings"].get("quantize") else "smollm2_dpo"
    write_json(HERE / f"{name}.json", result)


def running_mean(values, window: int):
    """Mean of each ``window`` neighbouring steps, and the steps on which they centre."""
    kernel = np.ones(window) / window
    means = np.convolve(values, kernel, "valid")
    return np.arange(len(means)) + (window + 1) / 2, means


def draw_curve(axes, rows, name: str, label: str, level: float, words: str) -> None:
    values = [row[name] for row in rows]
    steps = np.arange(1, len(values) + 1)
    axes.plot(steps, values, ".", color=AFTER, alpha=0.35, label="one step (4 pairs)")
    window = min(WINDOW, len(values))
    label_of_mean = f"mean of {window} steps"
    axes.plot(*running_mean(values, window), color=AFTER, linewidth=2, label=label_of_mean)
    axes.axhline(level, color="grey", linestyle="--", linewidth=1, label=words)
    axes.set(xlabel="optimizer steps", ylabel=label)
    axes.legend(frameon=False, fontsize=8)


def draw_accuracies(axes, report) -> None:
    """Held-out accuracies before (circles) and after (squares) with their 95% intervals."""
    untrained = {"value": 0.5, "interval": (0.5, 0.5)}  # every implicit reward is 0: all are ties
    kinds = {
        "log-probability,\nsummed": "summed",
        "log-probability,\nper token": "per_token",
        "implicit\nreward": "reward",
    }
    for when, shift, colour, marker in (("before", -0.1, BEFORE, "o"), ("after", 0.1, AFTER, "s")):
        numbers = [report.get(f"{kind}_accuracy_{when}", untrained) for kind in kinds.values()]
        values = np.array([number["value"] for number in numbers])
        low, high = np.array([number["interval"] for number in numbers]).T
        spread = np.clip([values - low, high - values], 0, None)
        places = np.arange(len(kinds)) + shift
        axes.errorbar(places, values, spread, fmt=marker, color=colour, capsize=4, label=when)
    axes.axhline(0.5, color="grey", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set(xlim=(-0.5, 2.5), ylabel="share that prefers the chosen answer")
    axes.legend(frameon=False, fontsize=8)


def draw(data: dict, path: Path) -> None:
    report, rows = data["held_out"], data["rows"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    draw_curve(left, rows, "loss", "DPO loss (nats)", float(np.log(2)), "log 2: no preference")
    draw_curve(middle, rows, "margin", "margin of implicit rewards", 0.0, "0: no preference")
    draw_accuracies(right, report)
    margin, accuracy = report["reward_margin_after"], report["reward_accuracy_after"]
    verdict = "rises" if margin["interval"][0] > 0 else "does not rise clearly"
    left.set_title("Training loss, each pair seen once", fontsize=10)
    middle.set_title("Training margin", fontsize=10)
    right.set_title(f"{data['held_out_pairs']} held-out pairs, 95% intervals", fontsize=10)
    how = "in 4 bits with adapters, " if data["settings"].get("quantize") else ""
    figure.suptitle(
        f"SmolLM2-135M, {how}{data['training_pairs']} human preferences: "
        f"the held-out margin {verdict} ({margin['value']:.3f} "
        f"[{margin['interval'][0]:.3f}, {margin['interval'][1]:.3f}]); "
        f"accuracy {accuracy['value']:.2f} "
        f"[{accuracy['interval'][0]:.2f}, {accuracy['interval'][1]:.2f}]",
        fontsize=11,
    )
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, metavar="RUN", help="folder of a finished run")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record)
    for numbers in sorted(HERE.glob("smollm2_*.json")):
        draw(json.loads(numbers.read_text()), numbers.with_suffix(".png"))


if __name__ == "__main__":
    main()
