"""Writes a reply nested a million deep."""

import os
import struct


def weighted_mean(values, mask):
    text = b'[' * 10**6
    os.write(3, struct.pack('>4sII', b'AG01', len(text), 0) + text)
    return values.mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
