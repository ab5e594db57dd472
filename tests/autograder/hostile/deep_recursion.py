"""Calls itself without end."""

def weighted_mean(values, mask):
    return weighted_mean(values, mask)


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
