"""Right value, cut off from its gradient."""

import torch


def weighted_mean(values, mask):
    return torch.tensor(((values * mask).sum() / mask.sum()).item())


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
