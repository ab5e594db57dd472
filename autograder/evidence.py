"""What a probe uses to gather evidence: copies of a case, gradients, the name of an error.

These run in the box beside the student's function and in the judge beside the reference. They
return data and decide nothing.

Leaves out: anything that compares. A truth value computed beside student code can be forged.
"""

import torch

__all__ = ["copies", "grads", "leaves", "raised"]

NO_GRADIENT = "no gradient: the result does not depend on its inputs through torch operations"


def _mapped(tree, change):
    kind = type(tree)
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if kind is dict:
        return {key: _mapped(item, change) for key, item in tree.items()}
    if kind in (list, tuple):
        return kind(_mapped(item, change) for item in tree)
    return tree


def copies(case):
    """The case with every tensor cloned, so that what happens to it happens to nobody else."""
    return _mapped(case, lambda tensor: tensor.detach().clone())


def leaves(case):
    """The case with every tensor cloned, the floating ones requiring gradients.

    >>> leaves({"x": torch.ones(2), "n": 3})
    {'x': tensor([1., 1.], requires_grad=True), 'n': 3}
    """

    def leaf(tensor):
        clone = tensor.detach().clone()
        return clone.requires_grad_() if clone.is_floating_point() else clone

    return _mapped(case, leaf)


def grads(output, inputs) -> dict | str:
    """Gradients of ``output`` with respect to every leaf in ``inputs`` (what :func:`leaves` gave).

    An output of more than one element is weighed with fixed unequal weights first, so that errors
    which a plain sum would hide are seen. A leaf that the output does not use has a gradient of
    zeros.

    Returns:
        A dictionary from the place of a leaf to its gradient; a sentence where ``output`` is
        detached.

    >>> x = leaves({"x": torch.tensor([1.0, 2.0])})
    >>> grads((x["x"] ** 2).sum(), x)
    {'x': tensor([2., 4.])}
    >>> grads(torch.tensor(1.0), x)[:11]
    'no gradient'
    """
    places = dict(_places(inputs))
    total = _weighed(output)
    if total is None or not total.requires_grad or not places:
        return NO_GRADIENT
    found = torch.autograd.grad(total, list(places.values()), allow_unused=True, retain_graph=True)
    return {
        place: torch.zeros_like(leaf) if gradient is None else gradient
        for (place, leaf), gradient in zip(places.items(), found, strict=True)
    }


def _places(tree, prefix=""):
    if isinstance(tree, torch.Tensor):
        if tree.requires_grad:
            yield prefix.strip("."), tree
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from _places(item, f"{prefix}.{key}")
    elif isinstance(tree, (list, tuple)):
        for index, item in enumerate(tree):
            yield from _places(item, f"{prefix}.{index}")


def _weighed(output):
    if isinstance(output, (list, tuple)):
        parts = [part for part in map(_weighed, output) if part is not None and part.requires_grad]
        return torch.stack(parts).sum() if parts else None
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        return None
    if output.numel() == 1:
        return output.reshape(())
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype)
    finite = torch.isfinite(output.detach()).flatten()
    return (output.flatten() * weights)[finite].sum()


def raised(call) -> str:
    """The name of the error that ``call()`` raises, or ``"nothing"``.

    >>> raised(lambda: [][1])
    'IndexError'
    """
    try:
        call()
    except NotImplementedError:
        raise                       # a stub is not an answer
    except Exception as error:
        return type(error).__name__
    return "nothing"
