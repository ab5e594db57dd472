"""What can be read off wrong numbers for free: a factor and its source, a sign, a shift, a cut gradient.

Leaves out: guesses. A pattern is named only where it holds on every failing case.
"""

import dataclasses
import math

import torch

from autograder.compare import Difference, differences, leaves_of
from autograder.wire import Other, Record

__all__ = ["Pattern", "pattern_of"]

INPUTS = "inputs_after"
KNOWN_FACTORS = {
    2.0: "is a factor 2 too many, or one half forgotten?",
    0.5: "is there one half too many?",
    1 / math.log(2): "that is 1/ln 2: a logarithm to base 2 where the natural one is asked",
    1 / math.log(10): "that is 1/ln 10: a logarithm to base 10 where the natural one is asked",
}
CLOSE = 1e-3


@dataclasses.dataclass
class Pattern:
    """What is said about the first difference of the smallest failing case."""

    path: str
    expected: object
    got: object
    sentence: str
    hints: list = dataclasses.field(default_factory=list)


def pattern_of(triples, tolerance) -> Pattern:
    """Look at failing cases: triples of case, expected tree, got tree; the smallest case first."""
    case, wanted, given = triples[0]
    found = differences(wanted, given, tolerance)
    first = found[0]
    pattern = Pattern(first.path, first.expected, first.got, "")
    if all(d.path.startswith(INPUTS) for d in found):
        name = first.path[len(INPUTS) :].strip(".")
        pattern.sentence = f"It changes its argument {f'`{name}` ' if name else ''}in place."
        pattern.hints.append("The caller still needs it: compute a new tensor instead.")
        return pattern
    pattern.sentence = _by_kind(first) or _by_numbers(first, triples, tolerance)
    if first.path.startswith("grad") and first.kind != "gradient":
        pattern.hints.append("The value is right, its gradient is not: is something detached, or not?")
    return pattern


def _by_kind(d: Difference) -> str:
    """Sentences that need no arithmetic."""
    name = f"`{d.path}`" if d.path else "The result"
    if d.kind == "gradient":
        return "The result carries no gradient: `.item()`, `.detach()` or `no_grad` cuts it off."
    if d.got is None:
        return "It returns None: is a `return` missing?" if d.kind == "type" else f"{name} is missing."
    if d.kind == "nan":
        return f"{name} is NaN: a division of zero by zero, a logarithm of zero, or a mean over nothing?"
    if d.kind == "shape":
        return _shapes(d)
    if d.kind == "dtype":
        return f"{name} has dtype {d.got.dtype}; {d.expected.dtype} is asked."
    if d.kind == "type":
        return f"{name} is {_kind(d.got)}; {_kind(d.expected)} is asked."
    if d.kind == "length":
        return f"{name} has {len(d.got)} entries; {len(d.expected)} are asked."
    if d.kind == "missing":
        return f"{name} is missing."
    return f"{name} is one too many." if d.kind == "extra" else ""


def _kind(value) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Other):
        return f"of type {value.type_name}"
    if isinstance(value, Record):
        return f"a {value.type_name}"
    names = {"dict": "a dictionary", "str": "a text", "bool": "True or False", "NoneType": "None"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def _shapes(d: Difference) -> str:
    name = f"`{d.path}`" if d.path else "The result"
    want, have = tuple(d.expected.shape), tuple(d.got.shape)
    text = f"{name} has shape {have}; {want} is asked"
    if have == want[::-1] and len(want) > 1:
        return f"{text}: it is transposed."
    if want == ():
        return f"{text}: one number for the whole batch (a mean is missing?)."
    if have == ():
        return f"{text}: it averages or sums over everything."
    if d.got.numel() == d.expected.numel():
        return f"{text}: the numbers stand in another shape (`squeeze`, `reshape`?)."
    if len(have) == len(want) + 1:
        return f"{text}: a dimension too many (broadcasting of (B,) with (B, 1)?)."
    return f"{text}."


def _by_numbers(d: Difference, triples, tolerance) -> str:
    """Factor, offset, sign, transposition, shift: named where every failing case shows it."""
    sides = [pair for _, wanted, given in triples if (pair := _side(d.path, wanted, given))]
    name = f"`{d.path}`" if d.path else "The result"
    if not sides or any(a.shape != b.shape for a, b in sides):
        return f"{name} is not what is expected."
    factor = _factor(sides, [case for case, _, _ in triples])
    if factor:
        return f"{name} is {factor}"
    gaps = [b - a for a, b in sides]
    flat = torch.cat([gap.flatten() for gap in gaps])
    if len(flat) > 1 and _all_close(flat, flat[0]):
        return f"{name} is off by the same number everywhere: {flat[0].item():.4g} too much."
    for words, change in _moves(sides[0][0].dim()):
        if all(_agree(change(a), b) for a, b in sides):
            return f"{name} {words}."
    return _rearranged(name, sides)


def _side(path, wanted, given):
    """Both sides of one leaf as float64 tensors; None where they are no numbers."""
    pair = dict(leaves_of(wanted)).get(path), dict(leaves_of(given)).get(path)
    if any(type(value) not in (int, float, torch.Tensor) for value in pair):
        return None
    return tuple(torch.as_tensor(value).double() for value in pair)


def _all_close(values, target) -> bool:
    return bool(torch.isfinite(values).all() and ((values - target).abs() <= CLOSE * abs(target)).all()) \
        and abs(float(target)) > 1e-6


def _agree(a, b) -> bool:
    return a.shape == b.shape and a.numel() > 1 and bool(torch.isclose(a, b, rtol=CLOSE, atol=1e-5).all())


def _ratio(a, b):
    """The one factor by which ``b`` is ``a``; None where there is none."""
    big = a.abs() > 1e-5 * max(a.abs().max().item(), 1e-12)
    if not big.any() or (b[~big].abs() > 1e-4 * b.abs().max()).any():
        return None
    ratios = b[big] / a[big]
    return ratios[0].item() if _all_close(ratios, ratios[0]) else None


def _factor(sides, cases) -> str:
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
    if all(abs(r - first) <= CLOSE * abs(first) for r in ratios) and (len(ratios) > 1 or sides[0][0].numel() > 1):
        known = next((f"; {w}" for k, w in KNOWN_FACTORS.items() if abs(first - k) < CLOSE), "")
        return f"{abs(first):.4g} times what is expected{known}{' (and of the other sign)' if first < 0 else ''}."
    return ""


def _source(ratios, cases):
    """What in every case equals the ratio: the size of a dimension, the ones of a mask, a number."""
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
            return shown, ": multiplied by it once too often.", ": multiplied by it once too seldom."
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
                words = f"the length of `{path}`" if dim == 0 else f"the size of dimension {dim} of `{path}`"
                found[("count", words)] = float(size)
            found.setdefault(("count", f"the number of entries of `{path}`"), float(value.numel()))
            if value.numel() and bool(((value == 0) | (value == 1)).all()):
                found.setdefault(("count", f"the number of ones in `{path}`"), float(value.sum()))
        elif type(value) in (int, float) and value not in (0, 1):
            found.setdefault(("number", f"`{path}`"), float(value))
    return found


def _moves(dims: int):
    """Rearrangements by name: each takes the expected tensor to what would have been got."""
    if dims == 2:
        yield "is transposed", lambda a: a.T
    for dim in range(dims):
        where = f" along dimension {dim}" if dims > 1 else ""
        yield f"runs backwards{where}", lambda a, dim=dim: a.flip(dim)
    yield "is right but for its sign in places: an absolute value", torch.abs
    yield "is the exponential of what is asked: probabilities for log-probabilities", torch.exp
    yield "is the logarithm of what is asked: log-probabilities for probabilities", torch.log
    yield "is the square of what is asked", torch.square


def _rearranged(name: str, sides) -> str:
    for dim in range(sides[0][0].dim()):
        for words, late in (("one step too late", True), ("one step too early", False)):
            if all(_shifted(a, b, dim, late) for a, b in sides):
                return f"{name} is shifted: every number stands {words}."
    if all(a.dim() and _agree(a.flatten().sort().values, b.flatten().sort().values) for a, b in sides):
        return f"{name} holds the right numbers in another order."
    return f"{name} is not what is expected."


def _shifted(a, b, dim, late) -> bool:
    n = a.shape[dim] - 1
    if n < 1:
        return a.shape == b.shape
    here, there = (b.narrow(dim, 1, n), a.narrow(dim, 0, n)) if late else (b.narrow(dim, 0, n), a.narrow(dim, 1, n))
    return bool(torch.isclose(here, there, rtol=CLOSE, atol=1e-5).all())
