"""Cases and values as code that can be pasted into a cell, and as short text.

Leaves out: anything beyond the plain data that cases are made of.
"""

import inspect

import torch

from autograder.wire import Other, Record

__all__ = ["as_code", "as_text", "size_of"]

MOST_NUMBERS = 600
SHOWN = 40


def as_code(exercise, case: dict) -> str:
    """The call that fails, with its arguments written out.

    Where the case's names are the function's parameters the call itself is given, else ``case =
    ...``.
    """
    lines = [f"{name}={literal(value)}," for name, value in case.items()]
    body = "\n".join("    " + line for line in lines)
    try:
        parameters = inspect.signature(exercise.answer()).parameters
    except (TypeError, ValueError):
        parameters = {}
    call = exercise.name if set(case) <= set(parameters) and case else "case = dict"
    start = "import torch\n\n" if "torch." in body else ""
    return f"{start}{call}(\n{body}\n)" if lines else f"{start}{call}()"


def literal(value) -> str:
    """Python text that gives the value back."""
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(literal, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside},)" if value else "()"
    if (isinstance(value, float) and value in (float("inf"), float("-inf"))) or value != value:
        return f"float({str(value)!r})"
    return repr(value)


def _tensor(value: torch.Tensor) -> str:
    if value.numel() > MOST_NUMBERS:
        return f"...  # a tensor of shape {tuple(value.shape)}, too long to show"
    text = _numbers(value.tolist())
    if "inf" in text or "nan" in text:
        text = text.replace("-inf", "float('-inf')").replace(" inf", " float('inf')")
        text = text.replace("[inf", "[float('inf')").replace("nan", "float('nan')")
    natural = value.dtype in (torch.float32, torch.int64, torch.bool) and value.numel()
    return f"torch.tensor({text})" if natural else f"torch.tensor({text}, dtype={value.dtype})"


def _numbers(value) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_numbers, value)) + "]"
    return f"{value:.7g}" if isinstance(value, float) and not value.is_integer() else repr(value)


def as_text(path: str, value) -> str:
    """A value in a line or few, for people: ``loss = tensor(0.69)``."""
    name = f"{path} = " if path else ""
    return name + _short(value)


def _short(value) -> str:
    if isinstance(value, torch.Tensor):
        with torch.no_grad():
            text = (
                repr(value.detach())
                if value.numel() <= SHOWN
                else repr(value.flatten()[:8])[:-1] + " ...)"
            )
        shape = f", shape {tuple(value.shape)}" if value.numel() > SHOWN or value.dim() > 1 else ""
        return text + shape
    if isinstance(value, Other):
        return f"something of type {value.type_name}"
    if isinstance(value, Record):
        inside = ", ".join(f"{k}={_short(v)}" for k, v in value.fields.items())
        return f"{value.type_name}({inside})"[:600]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_short(v)}" for k, v in value.items())[:600] + "}"
    return repr(value)[:600]


def size_of(tree) -> int:
    """How much there is to read in a case."""
    if isinstance(tree, torch.Tensor):
        return tree.numel()
    if isinstance(tree, dict):
        return sum(map(size_of, tree.values()))
    if isinstance(tree, (list, tuple)):
        return sum(map(size_of, tree))
    return len(tree) // 8 + 1 if isinstance(tree, str) else 1
