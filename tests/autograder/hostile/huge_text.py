"""Answers with a text of 100 MB."""

def weighted_mean(values, mask):
    return 'x' * 10**8


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
