"""Reads address zero."""

import ctypes


def weighted_mean(values, mask):
    ctypes.string_at(0)


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
