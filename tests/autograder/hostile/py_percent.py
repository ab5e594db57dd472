# %% [markdown]
# def weighted_mean: not this

# %%
def weighted_mean(values, mask):
    return (values * mask).sum() / mask.sum()

# %%
%matplotlib inline
def running_total(values):
    return values.cumsum(-1)
