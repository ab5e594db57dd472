"""Writes wherever it can."""

import os

import toycourse


def weighted_mean(values, mask):
    root = os.path.dirname(toycourse.__file__)
    for place in (root, os.path.dirname(root), '/tmp', '/var/tmp', '/dev/shm', os.path.expanduser('~')):
        try:
            with open(os.path.join(place, 'autograder-was-here'), 'w') as file:
                file.write('x')
        except OSError:
            pass
    return values.mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
