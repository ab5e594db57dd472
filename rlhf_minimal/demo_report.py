"""What the demo shows: its table, its sample answers, and two figures drawn from ``demo.json``.

Leaves out: running anything; :mod:`rlhf_minimal.demo` does that.
"""

import math

from rlhf_minimal.plots import COLOURS

__all__ = ["draw_answers", "draw_frontier", "samples_text", "table"]

SHOWN = ("base", "SFT", "best of 16", "PPO β=0.2", "DPO", "SimPO", "GRPO", "PPO β=0")


def table(result: dict) -> str:
    """One line a stage: gold, proxy, KL, win rate, length, seconds.

    "held out" is the gold reward on prompts whose combinations no stage has trained on; the win
    rate is against the SFT model on the same prompts, ties one half, with its 95% interval.
    """
    lines = [
        "stage         gold reward  held out    proxy  KL (nats)   wins over SFT   length  seconds",
        "-" * 89,
    ]
    for row in result["rows"]:
        gold, held, win = row["gold"], row["held_out"]["gold"], row["win_rate"]
        # Best-of-n trains nothing, so only a bound on its KL is known.
        kl = f"≤ {row['kl']:.2f}" if row["method"] == "best-of-n" else f"{row['kl']:.2f}"
        won = f"{win['mean']:4.0%} [{win['low']:.0%}, {win['high']:.0%}]"
        lines.append(
            f"{row['stage']:<12} {gold['mean']:5.2f} ± {gold['se']:.2f} {held['mean']:9.2f} "
            f"{row['proxy']:8.2f} {kl:>10} {won if row['stage'] != 'SFT' else '-':>15} "
            f"{row['length']:8.1f} {row['seconds']:8.1f}"
        )
    return "\n".join(lines)


def samples_text(result: dict) -> str:
    """The same three prompts, answered by each stage."""
    rows = {row["stage"]: row for row in result["rows"]}
    lines = []
    for number, prompt in enumerate(result["prompts"]):
        lines.append(f"\n  {prompt}")
        lines += [f"    {name:<11} {rows[name]['samples'][number]}" for name in SHOWN]
    return "\n".join(lines)


def draw_frontier(result: dict, path) -> None:
    """Gold reward against √KL for every method, and PPO's over-optimisation as β falls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=False)
    rows = [row for row in result["rows"] if row["stage"] != "base"]
    sft = next(row for row in rows if row["stage"] == "SFT")
    collapsed = [row for row in rows if row["gold"]["mean"] < sft["gold"]["mean"] - 1]
    rows = [row for row in rows if row not in collapsed]
    left.axhline(sft["gold"]["mean"], color="#999999", linewidth=1, zorder=0)
    for method in dict.fromkeys(row["method"] for row in rows):
        chosen = [row for row in rows if row["method"] == method]
        chosen.sort(key=lambda row: row["kl"])
        x = [math.sqrt(row["kl"]) for row in chosen]
        y = [row["gold"]["mean"] for row in chosen]
        error = [1.96 * row["gold"]["se"] for row in chosen]
        marks = dict(marker=MARKERS.get(method, "o"), linestyle="-" if len(x) > 1 else "none")
        left.errorbar(x, y, error, color=COLOURS[method], capsize=2, label=method, **marks)
    for row in rows:
        if row["method"] == "PPO":
            place = (math.sqrt(row["kl"]), row["gold"]["mean"])
            text = row["stage"].removeprefix("PPO ")
            left.annotate(text, place, (4, -12), textcoords="offset points", fontsize=8)
    off = [
        f"{row['stage']} lies far below: gold {row['gold']['mean']:.1f} "
        f"at √KL {math.sqrt(row['kl']):.1f}"
        for row in collapsed
    ]
    corner = dict(transform=left.transAxes, ha="right", va="top", fontsize=8)
    left.text(0.98, 0.98, "\n".join(off), **corner)
    _labels(left, "Every method gains near the SFT model; far from it gold falls", "gold reward")
    left.margins(y=0.15)
    left.legend(frameon=False, fontsize=8, loc="upper left")

    curve = next(row["curve"] for row in result["rows"] if row["stage"] == "PPO β=0")
    x = [math.sqrt(max(step["kl"], 0.0)) for step in curve]
    for name, key in (("proxy", "score"), ("gold", "gold")):
        y = [step[key] for step in curve]
        right.plot(x, y, ".-", color=COLOURS[name], linewidth=0.8, label=f"{name}, at each step")
    _labels(right, "PPO at β = 0: the proxy goes on rising while gold falls", "mean reward")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


MARKERS = {"SFT": "s", "best-of-n": "D", "DPO": "^", "SimPO": "v", "GRPO": "P"}


def _labels(axes, title: str, y_label: str) -> None:
    axes.set(title=title, xlabel="distance from the SFT model, √KL (√nats)", ylabel=y_label)
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)


def draw_answers(result: dict, path) -> None:
    """The sample answers of the pipeline as one picture."""
    import textwrap

    from matplotlib.figure import Figure

    rows = {row["stage"]: row for row in result["rows"]}
    names = [name for name in SHOWN if name in rows]
    figure = Figure(figsize=(11, 0.66 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.2, -1.4))
    columns = (0.0, 0.12, 0.4, 0.68)
    for x, prompt in zip(columns[1:], result["prompts"], strict=True):
        axes.text(x, -0.9, textwrap.fill(prompt, 36), fontsize=8, va="center", style="italic")
    for y, name in enumerate(names):
        row = rows[name]
        label = f"{name}\ngold {row['gold']['mean']:.2f}"
        style = dict(fontsize=9, va="center", weight="bold")
        axes.text(0.0, y + 0.3, label, color=COLOURS[row["method"]], **style)
        axes.axhline(y - 0.2, color="#dddddd", linewidth=0.8)
        for x, answer in zip(columns[1:], row["samples"], strict=True):
            axes.text(x, y + 0.3, textwrap.fill(answer, 42), fontsize=8, va="center")
    axes.set_title("From going on, to helping, to gaming the reward model: eight policies answer")
    figure.savefig(path, dpi=150)
