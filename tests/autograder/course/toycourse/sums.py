"""The reference functions of the toy course."""

import torch

__all__ = ["Shifted", "running_total", "scaled_error", "weighted_mean"]


def weighted_mean(values, mask):
    """Mean of ``values`` where ``mask`` is 1."""
    return (values * mask).sum() / mask.sum()


def running_total(values):
    """Sum of the entries so far."""
    return values.cumsum(-1)


def scaled_error(predicted, target, mask, scale):
    """Masked mean of squared errors, times ``scale``."""
    return scale * weighted_mean((predicted - target) ** 2, mask)


class Shifted(torch.nn.Module):
    """Adds a number that is learned."""

    def __init__(self, start):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(float(start)))

    def forward(self, x):
        return x + self.shift


def improve(values, loss=weighted_mean):
    """Something else of the package that holds a reference as a default argument."""
    return loss(values, torch.ones_like(values))
