"""The name is no function."""

weighted_mean = 0.5


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
