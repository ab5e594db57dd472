"""Right, after changing torch's default dtype."""

import torch


def weighted_mean(values, mask):
    torch.set_default_dtype(torch.float64)
    return (values * mask).sum() / mask.sum()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
