"""Lifts Python's limit, then overflows the stack."""

import sys


def weighted_mean(values, mask):
    sys.setrecursionlimit(10**9)
    return [weighted_mean(values, mask)]


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
