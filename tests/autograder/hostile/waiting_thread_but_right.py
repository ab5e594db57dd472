"""Right, with a thread that waits for ever."""

import threading
import time


def weighted_mean(values, mask):
    threading.Thread(target=time.sleep, args=(10**6,)).start()
    return (values * mask).sum() / mask.sum()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
