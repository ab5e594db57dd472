"""Nothing attempted."""


def weighted_mean(values, mask):
    """Mean of values where mask is 1."""
    raise NotImplementedError("01.1: write it here")


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
