"""Never returns, and swallows every exception."""

def weighted_mean(values, mask):
    while True:
        try:
            values.mean()
        except BaseException:
            pass


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
