def weighted_mean(values, mask):
    return (values * mask).sum() / mask.sum()


def broken(:
    pass


def running_total(values):
    return values.cumsum(-1)
