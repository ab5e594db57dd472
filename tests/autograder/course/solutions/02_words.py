# %% [markdown]
# # Toy lesson 02: words

# %%
from autograder import check


# %%
def longest_word(words):
    """The first of the longest words."""
    # SOLUTION
    if not words:
        raise ValueError("words is empty")
    return sorted(words, key=len, reverse=True)[0]
    # END SOLUTION


# %%
longest_word = check(longest_word)
