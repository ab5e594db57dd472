"""Holds a reply against the reference's: leaf by leaf, with a tolerance that the reference itself
sets.

The tolerance of a leaf is 64 times the rounding that separates the reference in float32 from the
reference in float64 on the same cases, or 64 units in the last place of its largest entry,
whichever is more: room for another order of the same operations, none for another formula.

Leaves out: saying what a difference means (``diagnosis.py``).
"""

import dataclasses
import math

import torch

from autograder.wire import Other, Record

__all__ = ["Difference", "Tolerance", "differences", "leaves_of"]

FLOAT32_EPS = torch.finfo(torch.float32).eps
ROOM = 64                       # multiples of rounding that another order of operations may take
ZERO_FLOOR = 1e-6               # where the right answer is exactly zero and has no scale of its own
UNUSABLE = 1e-3                 # float32 and float64 this far apart have taken different branches
MAX_DIFFERENCES = 40


@dataclasses.dataclass
class Difference:
    """One leaf that is not as it should be: where, in what way, and both sides."""

    path: str
    kind: str  # value, nan, shape, dtype, type, missing, extra, length, error, gradient
    expected: object
    got: object


@dataclasses.dataclass
class Tolerance:
    """Absolute tolerances by path: what rounding was seen, and what the author overrides."""

    rounding: dict = dataclasses.field(default_factory=dict)
    overrides: dict = dataclasses.field(default_factory=dict)     # path prefix -> (number, reason)
    any_dtype: bool = False

    def at(self, path: str, scale: float) -> float:
        for prefix, (number, _) in self.overrides.items():
            if path.startswith(prefix):
                return float(number)
        room = ROOM * max(self.rounding.get(path, 0.0), FLOAT32_EPS * scale)
        return room if room > 0 else ZERO_FLOOR

    def learn(self, single, double) -> None:
        """See how far the reference's float32 evidence is from its float64 evidence."""
        exact = dict(leaves_of(double))
        for path, value in leaves_of(single):
            a, b = _floats(value), _floats(exact.get(path))
            if a is None or b is None or a.shape != b.shape or not a.numel():
                continue
            finite = torch.isfinite(a) & torch.isfinite(b)
            gap = (a - b)[finite].abs().max().item() if finite.any() else 0.0
            scale = b[finite].abs().max().item() if finite.any() else 0.0
            if gap <= UNUSABLE * max(scale, FLOAT32_EPS):
                self.rounding[path] = max(self.rounding.get(path, 0.0), gap)


def _floats(value):
    """A float64 tensor of a floating leaf; None for any other."""
    if type(value) is float:
        return torch.tensor(value, dtype=torch.float64)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    return None


def leaves_of(tree, path=""):
    """Every leaf of a tree with its path, ``grad.policy_chosen``."""
    items = _items(tree)
    if items is None:
        yield path, tree
    else:
        for key, item in items:
            yield from leaves_of(item, f"{path}.{key}" if path else str(key))


def _items(tree):
    if isinstance(tree, Record):
        return list(tree.fields.items())
    if isinstance(tree, dict):
        return list(tree.items())
    if isinstance(tree, (list, tuple)):
        return list(enumerate(tree))
    return None


def differences(expected, got, tolerance: Tolerance, path="") -> list[Difference]:
    """Where ``got`` is not ``expected``; an empty list where it is.

    >>> [d.kind for d in differences({"loss": torch.ones(2)}, {"loss": torch.ones(3)}, Tolerance())]
    ['shape']
    >>> differences(2.0, torch.tensor(2.0), Tolerance())
    []
    """
    inside = _items(expected)
    if inside is None:
        found = _leaf(expected, got, tolerance, path)
        return [found] if found else []
    if _family(expected) != _family(got):
        return [Difference(path, _type_kind(expected, got), expected, got)]
    theirs = dict(_items(got))
    result = []
    if not isinstance(expected, dict) and len(inside) != len(theirs):
        return [Difference(path, "length", expected, got)]
    for key, item in inside:
        place = f"{path}.{key}" if path else str(key)
        if key not in theirs:
            result.append(Difference(place, "missing", item, None))
        else:
            result += differences(item, theirs.pop(key), tolerance, place)
    result += [
        Difference(f"{path}.{key}".strip("."), "extra", None, v) for key, v in theirs.items()
    ]
    return result[:MAX_DIFFERENCES]


def _family(tree):
    """Lists and tuples are taken for one another; records only with their own kind."""
    if isinstance(tree, Record):
        return tree.type_name
    return (
        "dict"
        if isinstance(tree, dict)
        else "sequence"
        if isinstance(tree, (list, tuple))
        else None
    )


def _type_kind(expected, got) -> str:
    return "gradient" if isinstance(expected, dict) and isinstance(got, str) else "type"


def _leaf(expected, got, tolerance, path):
    if isinstance(expected, torch.Tensor):
        return _tensor(expected, got, tolerance, path)
    if isinstance(got, torch.Tensor) and got.dim() == 0 and type(expected) in (bool, int, float):
        got = got.item()                         # a number is asked; a tensor of one number will do
    if type(expected) is float or (type(expected) is int and type(got) is float):
        if type(got) not in (int, float):
            return Difference(path, "type", expected, got)
        return _number(float(expected), float(got), tolerance, path)
    if type(expected) is not type(got):
        return Difference(path, "type", expected, got)
    if isinstance(expected, Other) or expected != got:
        return Difference(path, "value", expected, got)
    return None


def _number(expected: float, got: float, tolerance, path):
    if math.isnan(expected) or math.isinf(expected):
        same = expected == got or (math.isnan(expected) and math.isnan(got))
        return None if same else Difference(path, "value", expected, got)
    if math.isnan(got):
        return Difference(path, "nan", expected, got)
    near = abs(expected - got) <= tolerance.at(path, abs(expected))
    return None if near else Difference(path, "value", expected, got)


def _tensor(expected, got, tolerance, path):
    if not isinstance(got, torch.Tensor):
        return Difference(path, "type", expected, got)
    if got.shape != expected.shape:
        return Difference(path, "shape", expected, got)
    if got.dtype != expected.dtype:
        both_float = got.is_floating_point() and expected.is_floating_point()
        if not (tolerance.any_dtype and both_float):
            return Difference(path, "dtype", expected, got)
    if not expected.is_floating_point():
        return None if torch.equal(expected, got) else Difference(path, "value", expected, got)
    a, b = expected.double(), got.double()
    if bool((torch.isnan(b) & ~torch.isnan(a)).any()):
        return Difference(path, "nan", expected, got)
    finite = torch.isfinite(a)
    scale = a[finite].abs().max().item() if finite.any() else 0.0
    same = (a == b) | (torch.isnan(a) & torch.isnan(b))
    near = same | (finite & ((a - b).abs() <= tolerance.at(path, scale)))
    return None if bool(near.all()) else Difference(path, "value", expected, got)
