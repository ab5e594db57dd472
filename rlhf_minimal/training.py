"""What every training loop shares: an optimizer, a schedule, shuffled batches, one safe step.

Leaves out: several processes, which :mod:`rlhf_minimal.engine` adds.
"""

import math

import torch

from rlhf_minimal.checks import check_positive

__all__ = [
    "adamw",
    "apply_gradients",
    "learning_rate_factor",
    "minibatches",
    "optimizer_step",
    "set_learning_rate",
]


def adamw(model, lr: float, weight_decay: float = 0.0):
    """AdamW over the trainable parameters; fused, because tiny tensors are bound by dispatch."""
    check_positive(lr=lr)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter with requires_grad=True: nothing to train")
    for parameter in parameters:
        parameter.grad = None  # an interrupted run may have left one, which would join our first
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def learning_rate_factor(step: int, steps: int, warmup: int = 0, schedule: str = "constant"):
    """What to multiply the learning rate by at ``step`` (counted from 0) of ``steps``.

    Rises linearly over the ``warmup`` steps, then stays ("constant"), or falls to 0 along a line
    ("linear") or half a cosine ("cosine").

    >>> [round(learning_rate_factor(s, 4, schedule="cosine"), 3) for s in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    done = (step - warmup) / max(steps - warmup, 1)
    factors = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    if schedule not in factors:
        raise ValueError(f"schedule is {schedule!r}; it must be one of {sorted(factors)}")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return factors[schedule]


def set_learning_rate(optimizer, lr: float) -> None:
    """Use ``lr`` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def minibatches(size: int, batch_size: int, steps: int, generator, lengths=None):
    """``steps`` index tensors of ``batch_size`` out of ``size``, reshuffled every epoch.

    A batch never holds an index twice; a remainder smaller than a batch waits for the next epoch.

    Args:
        generator: where the shuffling's randomness comes from.
        lengths: of the ``size`` sequences. Sequences of like length then share a batch, so that
            little padding is computed; which of them come together is still drawn.

    >>> generator = torch.Generator().manual_seed(0)
    >>> [len(batch) for batch in minibatches(5, 2, 3, generator)]
    [2, 2, 2]
    """
    if size < 1:
        raise ValueError("there is nothing to train on: the examples, pairs or prompts are empty")
    check_positive(batch_size=batch_size)
    batch_size = min(batch_size, size)
    queue: list[torch.Tensor] = []
    for _ in range(steps):
        if not queue:
            order = torch.randperm(size, generator=generator)
            queue = list(order[: size - size % batch_size].split(batch_size))
            if lengths is not None:
                queue = _group_by_length(queue, torch.as_tensor(lengths), generator)
        yield queue.pop()


def _group_by_length(batches, lengths, generator, window: int = 16):
    """Sort by length within windows of so many batches, then shuffle the batches."""
    grouped = []
    for start in range(0, len(batches), window):
        rows = torch.cat(batches[start : start + window])
        grouped += rows[lengths[rows].argsort()].split(len(batches[0]))
    return [grouped[i] for i in torch.randperm(len(grouped), generator=generator)]


def optimizer_step(optimizer, loss, max_norm: float = 1.0) -> float:
    """One descent step on ``loss``: backward, clip the gradient's norm, step, clear.

    Returns:
        The gradient's norm before clipping.

    Raises:
        FloatingPointError: the loss or the gradient is NaN or infinite. The weights are untouched.
    """
    if not math.isfinite(loss.item()):
        raise FloatingPointError(
            f"the loss is {loss.item()}; look for a learning rate too high or a bad row in the data"
        )
    loss.backward()
    return apply_gradients(optimizer, max_norm)


def apply_gradients(optimizer, max_norm: float = 1.0, scaler=None) -> float:
    """Clip the gradients that have been accumulated, step, clear; returns the norm before.

    Args:
        scaler: a ``torch.amp.GradScaler`` whose scale the loss carried. Float16 ends at 65,504: a
            gradient beyond it makes no step and a smaller scale, and the run goes on.
    """
    scaled = scaler is not None and scaler.is_enabled()
    if scaled:
        scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    norm = getattr(norm, "full_tensor", lambda: norm)().item()  # of all shards, where sharded
    if scaled:
        scaler.step(optimizer)
        scaler.update()
    elif math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if not scaled and not math.isfinite(norm):
        raise FloatingPointError(f"the gradient's norm is {norm}; the weights are untouched")
    return norm
