"""Waits without computing."""

import time


def weighted_mean(values, mask):
    time.sleep(10**6)


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
