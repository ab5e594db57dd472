"""Answers with a number of two hundred thousand digits."""

def weighted_mean(values, mask):
    return 10**200_000


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
