"""Raises an error whose text never ends."""

class Endless(Exception):
    def __str__(self):
        while True:
            pass


def weighted_mean(values, mask):
    raise Endless()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
