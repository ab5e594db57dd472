"""Answers with a list that holds itself."""

def weighted_mean(values, mask):
    nest = []
    nest.append(nest)
    return nest


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
