"""Raises StopIteration and GeneratorExit in turn."""

def weighted_mean(values, mask):
    raise StopIteration if mask.sum() > 2 else GeneratorExit


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
