"""What can be read off wrong numbers for free: a factor and its source, a sign, a shift, a cut
gradient.

Leaves out: guesses. A pattern is named only where it holds on every failing case.
"""

import dataclasses

import torch

from autograder.compare import Difference, differences, leaves_of
from autograder.factors import CLOSE, all_close, factor_of
from autograder.wire import Other, Record

__all__ = ["Pattern", "gap_of", "pattern_of"]

INPUTS = "inputs_after"
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
    _, wanted, given = triples[0]
    found = differences(wanted, given, tolerance)
    first = found[0]
    pattern = Pattern(first.path, first.expected, first.got, "")
    if all(d.path.startswith(INPUTS) for d in found):
        name = first.path[len(INPUTS) :].strip(".")
        pattern.sentence = f"It changes its argument {f'`{name}` ' if name else ''}in place."
        pattern.hints.append("The caller still needs it: compute a new tensor instead.")
        return pattern
    pattern.sentence = _by_kind(first) or _by_numbers(first, triples, tolerance)
    about_gradients = first.path.startswith("grad") and not first.path.startswith("grade")
    if about_gradients and first.kind != "gradient":
        pattern.hints.append(
            "The value is right, its gradient is not: is something detached, or not?"
        )
    return pattern


def gap_of(expected, got) -> float:
    """The largest difference of two tensors of numbers, or of two numbers; 0 for anything else."""
    sides = [torch.as_tensor(x) for x in (expected, got) if isinstance(x, torch.Tensor | float)]
    if len(sides) < 2 or sides[0].shape != sides[1].shape or not sides[0].numel():
        return 0.0
    return float((sides[0].double() - sides[1].double()).abs().nan_to_num().max())


def _by_kind(d: Difference) -> str:
    """Sentences that need no arithmetic."""
    name = f"`{d.path}`" if d.path else "The result"
    if d.kind == "gradient":
        return "The result carries no gradient: `.item()`, `.detach()` or `no_grad` cuts it off."
    if d.got is None:
        return (
            "It returns None: is a `return` missing?" if d.kind == "type" else f"{name} is missing."
        )
    if d.kind == "nan":
        return f"{name} is NaN: zero divided by zero, a logarithm of zero, or a mean over nothing?"
    if d.kind == "shape":
        return _shapes(d)
    if d.kind == "dtype":
        return f"{name} has dtype {d.got.dtype}; {d.expected.dtype} is asked."
    if d.kind == "type":
        plain = isinstance(d.expected, torch.Tensor) and isinstance(d.got, int | float)
        why = " (`.item()` and `float` make a plain number, which has no gradient)" if plain else ""
        return f"{name} is {_kind(d.got)}; {_kind(d.expected)} is asked{why}."
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
    factor = factor_of(sides, [case for case, _, _ in triples])
    if factor:
        return f"{name} is {factor}"
    gaps = [b - a for a, b in sides]
    flat = torch.cat([gap.flatten() for gap in gaps])
    if len(flat) > 1 and all_close(flat, flat[0]):
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


def _agree(a, b) -> bool:
    return (
        a.shape == b.shape
        and a.numel() > 1
        and bool(torch.isclose(a, b, rtol=CLOSE, atol=1e-5).all())
    )


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
        if max(a.shape[dim] for a, _ in sides) < 2:
            continue  # nothing there can move
        for words, late in (("one step too late", True), ("one step too early", False)):
            if all(_shifted(a, b, dim, late) for a, b in sides):
                return f"{name} is shifted: every number stands {words}."
    if all(
        a.dim() and _agree(a.flatten().sort().values, b.flatten().sort().values) for a, b in sides
    ):
        return f"{name} holds the right numbers in another order."
    return f"{name} is not what is expected."


def _shifted(a, b, dim, late) -> bool:
    n = a.shape[dim] - 1
    if n < 1:
        return a.shape == b.shape
    here, there = (
        (b.narrow(dim, 1, n), a.narrow(dim, 0, n))
        if late
        else (b.narrow(dim, 0, n), a.narrow(dim, 1, n))
    )
    return bool(torch.isclose(here, there, rtol=CLOSE, atol=1e-5).all())
