"""Asks for a tensor of four terabytes."""

import torch


def weighted_mean(values, mask):
    return torch.zeros(10**12).mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
