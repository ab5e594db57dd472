"""Waits for a lock that it holds."""

import threading


def weighted_mean(values, mask):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
