"""Has another function of the package call the answer."""

import torch

from toycourse.sums import scaled_error


def weighted_mean(values, mask):
    return scaled_error(values.sqrt(), torch.zeros_like(values), mask, 1.0)


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
