"""The function is not there."""


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
