# %% [markdown]
# # Toy lesson 01: sums

# %%
import torch
from tqdm.auto import tqdm

from autograder import check

# %% [markdown]
# ## 01.1 A mean under a mask
#
# <!-- answer: weighted_mean -->


# %%
def weighted_mean(values, mask):
    """Mean of values where mask is 1."""
    # SOLUTION
    return (values * mask).sum() / mask.sum()
    # END SOLUTION


# %%
weighted_mean = check(weighted_mean)

# %% [markdown]
# ## 01.2 A running total


# %%
def running_total(values):
    """Sum of the entries so far."""
    total = values.clone()
    # SOLUTION
    for i in range(1, len(values)):
        total[i] += total[i - 1]
    return total
    # END SOLUTION


# %%
running_total = check(running_total)


# %%
def scaled_error(predicted, target, mask, scale):
    """Masked mean of squared errors, times scale."""
    # SOLUTION
    # STUB squared = ...
    # STUB raise NotImplementedError
    squared = (predicted - target) ** 2
    return scale * weighted_mean(squared, mask)
    # END SOLUTION


# %%
class Shifted(torch.nn.Module):
    """Adds a number that is learned."""

    def __init__(self, start):
        # SOLUTION
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(float(start)))
        # END SOLUTION

    def forward(self, x):
        # SOLUTION
        return x + self.shift
        # END SOLUTION


# %%
for _ in tqdm(range(3)):
    torch.zeros(1)
print(torch.__file__)
object()

# %% tags=["solution"]
print("only in the solution")

# %% tags=["lesson"]
print("only in the lesson")
