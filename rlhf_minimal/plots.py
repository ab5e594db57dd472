"""How the course draws results: one colour a method, titles that state a finding.

The colours are those of Okabe & Ito (2008), which colour-blind readers tell apart, and a method
keeps its colour through every lesson. Nothing here changes matplotlib's settings.

Leaves out: interactive figures; a lesson's widgets are its own.
"""

import numpy as np

__all__ = ["COLOURS", "learning_curve", "points"]

# Nine colours for thirteen names: those that share one never meet in a figure.
COLOURS = {
    "base": "#000000",  # black
    "SFT": "#56B4E9",  # sky blue
    "best-of-n": "#8C6D46",  # brown
    "PPO": "#0072B2",  # blue
    "DPO": "#D55E00",  # vermillion
    "IPO": "#E69F00",  # orange
    "SimPO": "#CC79A7",  # reddish purple
    "GRPO": "#009E73",  # bluish green
    "RLOO": "#F0E442",  # yellow
    "REINFORCE": "#E69F00",
    "reward model": "#CC79A7",
    "gold": "#E69F00",
    "proxy": "#56B4E9",
}


def points(history, x: str, y: str) -> tuple[list, list]:
    """Two columns of a :class:`History`, from the rows that hold both.

    >>> from rlhf_minimal.history import History
    >>> history = History()
    >>> history.record(steps=10), history.record(steps=20, greedy_return=9.5)
    (None, None)
    >>> points(history, "steps", "greedy_return")
    ([20], [9.5])
    """
    rows = [row for row in history.rows if x in row and y in row]
    return [row[x] for row in rows], [row[y] for row in rows]


def learning_curve(
    curves,
    *,
    title: str,
    y_label: str = "greedy return (reward per episode)",
    x_label: str = "environment steps",
    target: float | None = None,
    axes=None,
):
    """Every seed as a thin line and their median as a thick one, a colour a method.

    Args:
        curves: ``{method: [(x, y), ...]}``, a pair of equally long lists for each seed. A run that
            stopped early keeps its last value.
        title: the finding, as a sentence.
        target: a dashed line at this height.
        axes: where to draw; ``None`` makes a new pyplot figure.

    Returns:
        The axes.

    Raises:
        ValueError: there is no curve, or one has no points.
    """
    if not curves or not all(runs and all(len(x) for x, _ in runs) for runs in curves.values()):
        raise ValueError("curves needs a method at least, and points in each of its runs")
    if axes is None:
        from matplotlib import pyplot  # only here: importing it picks a backend

        _, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for method, runs in curves.items():
        colour = COLOURS.get(method, "#000000")
        grid = np.unique(np.concatenate([x for x, _ in runs]))
        median = np.median([np.interp(grid, x, y) for x, y in runs], axis=0)
        for x, y in runs if len(runs) > 1 else []:
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.35)
        seeds = f"median of {len(runs)} seeds (thin lines)" if len(runs) > 1 else "one seed"
        axes.plot(grid, median, color=colour, linewidth=2.2, label=f"{method}, {seeds}")
    if target is not None:
        axes.axhline(
            target, color="#666666", linestyle="--", linewidth=1, label=f"target: {target:g}"
        )
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return axes
