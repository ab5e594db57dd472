"""Forgets to return."""

def weighted_mean(values, mask):
    (values * mask).sum() / mask.sum()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
