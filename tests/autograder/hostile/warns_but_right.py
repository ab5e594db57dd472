"""Right, with warnings."""

import warnings


def weighted_mean(values, mask):
    warnings.warn('deprecated', DeprecationWarning, stacklevel=2)
    warnings.warn('careful', RuntimeWarning, stacklevel=2)
    return (values * mask).sum() / mask.sum()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
