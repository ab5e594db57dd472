"""Forks, so that two processes answer."""

import os


def weighted_mean(values, mask):
    os.fork()
    return values.mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
