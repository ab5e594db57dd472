"""Never returns."""

def weighted_mean(values, mask):
    while True:
        pass


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
