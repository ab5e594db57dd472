"""Pretends that someone pressed Ctrl-C."""

def weighted_mean(values, mask):
    raise KeyboardInterrupt


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
