"""Asks the keyboard."""

def weighted_mean(values, mask):
    return values.mean() * float(input('scale? '))


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
