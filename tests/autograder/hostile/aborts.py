"""Aborts."""

import os


def weighted_mean(values, mask):
    os.abort()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
