"""Right value, but changes its argument."""

import torch


def weighted_mean(values, mask):
    answer = (values * mask).sum() / mask.sum()
    with torch.no_grad():
        values.zero_()
    return answer


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
