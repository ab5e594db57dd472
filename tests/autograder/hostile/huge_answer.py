"""Answers with a tensor that is small here and terabytes when sent."""

import torch


def weighted_mean(values, mask):
    return torch.zeros(1).expand(10**12)


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
