"""Kills its own process."""

import os


def weighted_mean(values, mask):
    os.kill(os.getpid(), 9)


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
