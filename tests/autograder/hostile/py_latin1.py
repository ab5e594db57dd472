# -*- coding: latin-1 -*-
# Zoë
def weighted_mean(values, mask):
    return (values * mask).sum() / mask.sum()


def running_total(values):
    return values.cumsum(-1)
