"""Checks of arguments, so that bad input ends in a sentence and not in a silent NaN.

Each raises ``ValueError`` or ``TypeError`` naming the argument, its value and the way out.

Leaves out: type checking in general. These are the mistakes that torch would let through.
"""

import torch

__all__ = ["check_finite", "check_mask", "check_nonnegative", "check_positive", "check_same_shape"]


def check_same_shape(**tensors) -> None:
    """All tensors have one shape, and at least one element: broadcasting hides mistakes.

    >>> check_same_shape(rewards=torch.zeros(3), values=torch.zeros(4))
    Traceback (most recent call last):
    ValueError: rewards has shape (3,) but values has shape (4,); they must be the same
    """
    (first, reference), *others = tensors.items()
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
    for name, tensor in others:
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{first} has shape {tuple(reference.shape)} but {name} has shape "
                f"{tuple(tensor.shape)}; they must be the same"
            )
    if reference.numel() == 0:
        raise ValueError(
            f"{first} is empty (shape {tuple(reference.shape)}): a mean over nothing is NaN"
        )


def check_mask(mask, values, name: str = "values") -> None:
    """``mask`` is of ``values``'s shape and counts at least one element.

    >>> check_mask(torch.zeros(2, 3), torch.ones(2, 3))
    Traceback (most recent call last):
    ValueError: mask counts no token at all: a mean over nothing is NaN
    """
    check_same_shape(**{name: values, "mask": mask})
    if not bool((mask != 0).any()):
        raise ValueError("mask counts no token at all: a mean over nothing is NaN")


def check_finite(name: str, tensor) -> None:
    """No NaN and no infinity; says where the first one stands.

    >>> check_finite("rewards", torch.tensor([1.0, float("nan")]))
    Traceback (most recent call last):
    ValueError: rewards[1] is nan; every entry must be a finite number
    """
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        place = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{name}{place if place else ''} is {tensor[tuple(place)].item()}; "
            "every entry must be a finite number"
        )


def _and_finite(number) -> str:
    return " and finite" if number == float("inf") else ""


def check_nonnegative(**numbers) -> None:
    """Each number is finite and at least zero.

    >>> check_nonnegative(beta=-0.1)
    Traceback (most recent call last):
    ValueError: beta is -0.1; it must be 0 or more
    """
    for name, number in numbers.items():
        if not 0 <= number < float("inf"):
            raise ValueError(f"{name} is {number}; it must be 0 or more" + _and_finite(number))


def check_positive(**numbers) -> None:
    """Each number is finite and above zero.

    >>> check_positive(steps=0)
    Traceback (most recent call last):
    ValueError: steps is 0; it must be above 0
    """
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise ValueError(f"{name} is {number}; it must be above 0" + _and_finite(number))
