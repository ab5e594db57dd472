"""How time and memory grow: the fitted exponents, their table and their figure."""

import math
from pathlib import Path

AXES = ("parameters", "tokens a sequence", "pairs a batch", "processes")


def curves(found: dict) -> dict:
    """Axis -> x, seconds a step, and MiB above the imports, the median where x was met twice."""
    points: dict[str, dict] = {}
    for run in found["runs"]:
        if "failed" not in run:
            memory = run["peak_mib"] - run["after_imports_mib"]
            here = points.setdefault(run["axis"], {}).setdefault(run["x"], [])
            here.append((run["seconds_per_step"], memory))
    middle = lambda values: sorted(values)[len(values) // 2]  # noqa: E731
    return {
        axis: [(x, middle([s for s, _ in seen]), middle([m for _, m in seen]))
               for x, seen in sorted(points[axis].items())]
        for axis in AXES if axis in points
    }


def exponent(xs, ys) -> float:
    """The slope of log y against log x, by least squares."""
    xs, ys = [math.log(x) for x in xs], [math.log(y) for y in ys]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - x_mean) ** 2 for x in xs)


def fits(found: dict) -> dict:
    """Axis -> the exponents of time and of memory, over all points and over the upper half."""
    result = {}
    for axis, points in curves(found).items():
        if len(points) > 1:
            xs, seconds, memory = zip(*points, strict=True)
            upper = len(xs) // 2 if len(xs) > 3 else 0
            result[axis] = {
                "seconds": exponent(xs, seconds), "memory": exponent(xs, memory),
                "seconds_upper": exponent(xs[upper:], seconds[upper:]),
                "memory_upper": exponent(xs[upper:], memory[upper:]),
            }
    return result


def section(found: dict) -> list[str]:
    """The part of the page."""
    lines = [
        "## Scaling of our DPO", "",
        "One quantity grows, the others stay at a width of 128 (four layers), 64 tokens and 16 "
        "pairs; processes share 32 pairs, one thread each. An exponent of 1 is proportional. The "
        "upper half of the points says more about large sizes: in the lower one fixed costs of a "
        "step weigh.", "",
        "| | from | to | time | upper half | memory above imports | upper half |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    points = curves(found)
    for axis, fit in fits(found).items():
        values = [f"x^{fit[key]:.2f}"
                  for key in ("seconds", "seconds_upper", "memory", "memory_upper")]
        lines.append(f"| {axis} | {points[axis][0][0]:,} | {points[axis][-1][0]:,} | "
                     + " | ".join(values) + " |")
    workers = {x: seconds for x, seconds, _ in points.get("processes", [])}
    if {1, 2} <= workers.keys():
        gain = workers[1] / workers[2]
        lines += ["", f"Two processes take a step {gain:.2f} times as fast as one; their memory is "
                  "the sum of both."]
    return [*lines, "", "![How time and memory of a DPO step grow](scaling.png)", ""]


def draw(found: dict, path: Path) -> None:
    """A column an axis: seconds above, memory below, both logarithmic, with the fitted line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    points, fitted = curves(found), fits(found)
    if not fitted:
        return
    figure = Figure(figsize=(3.1 * len(fitted), 5.6), layout="constrained")
    grid = figure.subplots(2, len(fitted), squeeze=False)
    for column, (axis, fit) in enumerate(fitted.items()):
        xs, *measures = zip(*points[axis], strict=True)
        for row, (key, label, colour) in enumerate(
            (("seconds", "seconds a step", "#0072B2"), ("memory", "MiB above imports", "#D55E00"))
        ):
            axes, ys = grid[row, column], measures[row]
            centre = [math.exp(sum(map(math.log, v)) / len(v)) for v in (xs, ys)]
            line = [centre[1] * (x / centre[0]) ** fit[key] for x in xs]
            axes.loglog(xs, ys, "o", color=colour)
            axes.loglog(xs, line, "-", color=colour, alpha=0.5)
            name = "time" if key == "seconds" else "memory"
            axes.set_title(f"{name} ∝ {axis}^{fit[key]:.2f}", fontsize=9)
            axes.set(xlabel=axis, ylabel=label if column == 0 else "")
            axes.set_xticks(xs, [f"{x / 1e6:.2g}M" if x > 1e5 else str(x) for x in xs], fontsize=8)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
    told = ", ".join(f"{axis}^{fit['seconds_upper']:.2f}" for axis, fit in fitted.items())
    figure.suptitle(f"For large sizes a DPO step's time grows as {told} (our GPT, float32, a CPU)")
    figure.savefig(path, dpi=160)
