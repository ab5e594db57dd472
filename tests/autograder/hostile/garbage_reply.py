"""Writes garbage where the answers go."""

import os


def weighted_mean(values, mask):
    os.write(3, b'garbage' * 1000)
    return values.mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
