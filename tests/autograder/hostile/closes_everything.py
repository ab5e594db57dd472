"""Closes every descriptor."""

import os


def weighted_mean(values, mask):
    os.closerange(0, 1000)
    return values.mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
