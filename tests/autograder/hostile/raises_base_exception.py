"""Raises what `except Exception` does not catch, with a text that fails."""

class Unprintable(BaseException):
    def __str__(self):
        raise self


def weighted_mean(values, mask):
    raise Unprintable()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
