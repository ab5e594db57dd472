"""Leaves a process behind that no parent owns."""

import os


def weighted_mean(values, mask):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp('sleep', ['sleep', '98765'])
        os._exit(0)
    return values.mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
