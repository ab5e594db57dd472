"""Functions that know nothing and must not pass: zeros, constants, NaN, the input itself.

They take the reference's answer only for its form.

Leaves out: impostors that know the subject; those are the author's known mistakes.
"""

import functools

import torch

__all__ = ["impostors_of"]


def impostors_of(reference) -> dict:
    """Impostors by what they give."""
    if isinstance(reference, type):
        return _classes(reference)
    return {
        "nothing": lambda *args, **kwargs: None,
        "its first argument": _echo,
        **{
            name: functools.partial(_changed, reference, change) for name, change in CHANGES.items()
        },
        "its first answer again": _Parrot(reference),
    }


def _echo(*args, **kwargs):
    return next(iter([*args, *kwargs.values()]), None)


def _zero(value):
    return value * 0 if isinstance(value, torch.Tensor | int | float) else type(value)()


def _one(value):
    return _zero(value) + 1 if isinstance(value, torch.Tensor | int | float) else value


def _nan(value):
    floating = isinstance(value, float) or (
        isinstance(value, torch.Tensor) and value.is_floating_point()
    )
    return value * float("nan") if floating else _zero(value)


CHANGES = {"zeros": _zero, "ones": _one, "NaN": _nan}


def _mapped(value, change):
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, change) for item in value)
    if isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool):
        return value ^ value if change is not _one else value | True
    if isinstance(value, torch.Tensor | int | float):
        return change(value)
    return "" if isinstance(value, str) else None


def _changed(reference, change, *args, **kwargs):
    """The form of the right answer without its content; what the reference does to its inputs is
    not done.
    """
    answer = reference(*_apart(args), **_apart(kwargs))
    return _mapped(answer, change)


def _apart(tree):
    """Arguments that can be changed without harm: tensors keep their gradient history, containers
    are new.
    """
    if isinstance(tree, dict):
        return {key: _apart(item) for key, item in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map(_apart, tree))
    if isinstance(tree, torch.nn.Module):
        import copy

        return copy.deepcopy(tree)
    return tree * 1 if isinstance(tree, torch.Tensor) and tree.is_floating_point() else tree


class _Parrot:
    """Answers the first call rightly, and every later one with that answer."""

    def __init__(self, reference):
        self.reference, self.said = reference, None

    def __call__(self, *args, **kwargs):
        if self.said is None:
            self.said = self.reference(*args, **kwargs)
        return self.said


def _classes(reference) -> dict:
    """For a module: its ``forward`` (or ``__call__``) gives zeros, ones, NaN or its input."""
    method = "forward" if hasattr(reference, "forward") else "__call__"
    if not hasattr(reference, method):
        return {"nothing": lambda *args, **kwargs: None}

    def changed(change):
        def call(self, *args, **kwargs):
            answer = getattr(super(subclass, self), method)(*args, **kwargs)
            return _mapped(answer, change)

        subclass = type(reference.__name__, (reference,), {method: call})
        return subclass

    echo = type(reference.__name__, (reference,), {method: lambda self, *a, **k: _echo(*a, **k)})
    return {"nothing": lambda *args, **kwargs: None, "its first argument": echo,
            **{name: changed(change) for name, change in CHANGES.items()}}
