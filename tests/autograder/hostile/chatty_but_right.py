"""Right, printing without measure."""

import os


def weighted_mean(values, mask):
    for _ in range(2000):
        print('x' * 10_000)
    os.write(1, b'y' * 10**6)
    os.write(2, b'z' * 10**6)
    return (values * mask).sum() / mask.sum()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
