"""Blocks every signal, then loops."""

import signal


def weighted_mean(values, mask):
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        pass


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
