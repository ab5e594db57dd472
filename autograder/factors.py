"""A constant factor between what is expected and what came, and where it comes from.

Leaves out: every other pattern (``patterns.py``).
"""

import math

import torch

from autograder.compare import leaves_of

__all__ = ["CLOSE", "all_close", "factor_of"]

KNOWN_FACTORS = {
    2.0: "is a factor 2 too many, or one half forgotten?",
    0.5: "is there one half too many?",
    1 / math.log(2): "that is 1/ln 2: a logarithm to base 2 where the natural one is asked",
    1 / math.log(10): "that is 1/ln 10: a logarithm to base 10 where the natural one is asked",
}
CLOSE = 1e-3
def all_close(values, target) -> bool:
    return (
        bool(
            torch.isfinite(values).all() and ((values - target).abs() <= CLOSE * abs(target)).all()
        )
        and abs(float(target)) > 1e-6
    )


def _ratio(a, b):
    """The one factor by which ``b`` is ``a``; None where there is none."""
    big = a.abs() > 1e-5 * max(a.abs().max().item(), 1e-12)
    if not big.any() or (b[~big].abs() > 1e-4 * b.abs().max()).any():
        return None
    ratios = b[big] / a[big]
    return ratios[0].item() if all_close(ratios, ratios[0]) else None


def factor_of(sides, cases) -> str:
    ratios = [_ratio(a, b) for a, b in sides]
    if None in ratios:
        return ""
    if all(abs(r + 1) < CLOSE for r in ratios):
        return "right but for its sign."
    for inverse in (False, True):
        found = _source([1 / r if inverse else r for r in ratios], cases)
        if found:
            size = abs(1 / ratios[0] if inverse else ratios[0])
            way = "small" if (abs(ratios[0]) < 1) else "large"
            times = size if size >= 1 else 1 / size
            return f"{times:.4g} times too {way}, and {found[0]}{found[1 + inverse]}"
    first = ratios[0]
    if all(abs(r - first) <= CLOSE * abs(first) for r in ratios) and (
        len(ratios) > 1 or sides[0][0].numel() > 1
    ):
        if abs(first - 1) < CLOSE:
            return "right to three digits and not exact: an epsilon too large, or digits lost?"
        known = next((f"; {w}" for k, w in KNOWN_FACTORS.items() if abs(first - k) < CLOSE), "")
        sign = " (and of the other sign)" if first < 0 else ""
        return f"{abs(first):.4g} times what is expected{known}{sign}."
    return ""


def _source(ratios, cases):
    """What in every case equals the ratio: the size of a dimension, the ones of a mask, a number.
    """
    quantities = [_quantities(case) for case in cases[: len(ratios)]]
    for key in quantities[0]:
        values = [q.get(key) for q in quantities]
        if None in values or all(abs(v - 1) < CLOSE for v in values):
            continue
        if all(abs(r - v * v) <= CLOSE * v * v for r, v in zip(ratios, values, strict=True)):
            shown = f"that is the square of {values[0]:.4g}, which is {key[1]}: multiplied by it"
            return shown, " where it is divided by.", " where it should be the other way round."
        if all(abs(r - v) <= CLOSE * abs(v) for r, v in zip(ratios, values, strict=True)):
            shown = f"{values[0]:.4g} is {key[1]}"
            if key[0] == "count":
                return shown, ": a sum where a mean is asked.", ": a mean where a sum is asked."
            return (
                shown,
                ": multiplied by it once too often.",
                ": multiplied by it once too seldom.",
            )
    return None


def _quantities(case) -> dict:
    found = {}
    tensors = [value for _, value in leaves_of(case) if isinstance(value, torch.Tensor)]
    lengths = {value.shape[0] for value in tensors if value.dim()}
    if len(lengths) == 1 and len(tensors) > 1:
        found["count", "your batch"] = float(lengths.pop())
    for path, value in leaves_of(case):
        if isinstance(value, torch.Tensor):
            for dim, size in enumerate(value.shape):
                words = (
                    f"the length of `{path}`"
                    if dim == 0
                    else f"the size of dimension {dim} of `{path}`"
                )
                found[("count", words)] = float(size)
            found.setdefault(("count", f"the number of entries of `{path}`"), float(value.numel()))
            if value.numel() and bool(((value == 0) | (value == 1)).all()):
                found.setdefault(("count", f"the number of ones in `{path}`"), float(value.sum()))
        elif type(value) in (int, float) and value not in (0, 1):
            found.setdefault(("number", f"`{path}`"), float(value))
    return found
