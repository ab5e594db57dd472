"""DPO and its relatives in the exact world: on all comparisons that there are, or on sampled ones.

Infinitely many comparisons are a sum over all pairs of answers, so what a loss does can be told
from what few and noisy labels do to it. Follows Rafailov et al. 2023, arXiv 2305.18290.

Leaves out: labels that do not follow Bradley–Terry, and answers drawn from another policy than the
reference.
"""

from functools import partial
from typing import NamedTuple

import torch

from rlhf_minimal.checks import check_positive
from rlhf_minimal.dpo import dpo_loss
from rlhf_minimal.exact import World
from rlhf_minimal.exact_methods import descend

__all__ = [
    "Preferences",
    "merge_alike",
    "population_preferences",
    "sample_preferences",
    "train_on_preferences",
    "without_label_noise",
]


class Preferences(NamedTuple):
    """Comparisons by number: ``chosen`` and ``rejected`` are places in the list of all answers.

    ``weights`` sum to 1 and say what share of all comparisons each one is.
    """

    prompt: torch.Tensor  # (N,)
    chosen: torch.Tensor  # (N,)
    rejected: torch.Tensor  # (N,)
    weights: torch.Tensor  # (N,)


def population_preferences(world: World) -> Preferences:
    """All preferences that there are, each with its probability: infinitely many labels.

    A prompt is drawn evenly, two answers from the reference, and a is preferred to b with
    probability σ(r_a − r_b) (Bradley–Terry). An answer compared with itself is left out: it teaches
    nothing.

    >>> from rlhf_minimal.exact import make_world
    >>> len(population_preferences(make_world()).weights)  # 4 prompts · 125 · 124 ordered pairs
    62000
    """
    reference, rewards = world.reference(), world.rewards
    drawn = (reference[:, :, None] + reference[:, None, :]).exp()  # (P, Y, Y)
    preferred = torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])
    weights = drawn * preferred * (1 - torch.eye(drawn.shape[-1], dtype=drawn.dtype))
    where = weights.nonzero(as_tuple=True)
    return Preferences(*where, weights[where] / weights.sum())


def sample_preferences(world: World, count: int, generator: torch.Generator) -> Preferences:
    """``count`` comparisons drawn from the same distribution, in the order in which they came.

    Both answers come from the reference, so some pairs compare an answer with itself; they stay in,
    since they were paid for.
    """
    check_positive(count=count)
    reference, rewards = world.reference(), world.rewards
    prompt = torch.randint(len(reference), (count,), generator=generator)
    pair = torch.multinomial(reference.exp()[prompt], 2, replacement=True, generator=generator)
    a, b = pair.T
    preferred = torch.sigmoid(rewards[prompt, a] - rewards[prompt, b])
    a_wins = torch.rand(count, generator=generator, dtype=preferred.dtype) < preferred
    chosen, rejected = torch.where(a_wins, a, b), torch.where(a_wins, b, a)
    return Preferences(prompt, chosen, rejected, torch.full_like(preferred, 1 / count))


def merge_alike(preferences: Preferences) -> Preferences:
    """The same comparisons with like ones put together: less to compute, the same loss.

    >>> a, b, half = torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([0.5, 0.5])
    >>> merge_alike(Preferences(a, a, b, half)).weights  # twice the same
    tensor([1.])
    """
    rows, weights = torch.stack(preferences[:3]), preferences.weights
    kinds, kind_of = rows.unique(dim=1, return_inverse=True)
    return Preferences(*kinds, weights.new_zeros(kinds.shape[1]).index_add(0, kind_of, weights))


def without_label_noise(world: World, preferences: Preferences) -> Preferences:
    """The same pairs of answers, each with the *probability* of either label instead of a draw.

    As if every pair had been put to infinitely many annotators. What is left of an error then comes
    from which answers were drawn; what goes away was the labels' noise.
    """
    prompt, chosen, rejected, weights = preferences
    agree = torch.sigmoid(world.rewards[prompt, chosen] - world.rewards[prompt, rejected])
    return Preferences(
        prompt.repeat(2),
        torch.cat([chosen, rejected]),
        torch.cat([rejected, chosen]),
        torch.cat([weights * agree, weights * (1 - agree)]),
    )


def train_on_preferences(
    world: World,
    preferences: Preferences,
    *,
    loss=dpo_loss,
    beta: float | None = None,
    steps: int = 300,
    batch_size: int | None = None,
    lr: float = 0.1,
    held_out: Preferences | None = None,
):
    """DPO and its relatives, on all preferences at every step or on each of them once.

    Args:
        loss: called as ``loss(policy_chosen, policy_rejected, reference_chosen,
            reference_rejected, beta=beta)`` with ``(B,)`` log-probabilities, here one pair at a
            time (under ``torch.vmap``), so that each pair's loss can carry its weight.
        beta: of the loss; ``None`` takes the world's.
        steps: updates, each on all preferences; unused with a ``batch_size``.
        batch_size: instead take the preferences in their order, so many an update, each of them
            once (a last batch that is not full is left out). They must weigh alike.
        held_out: comparisons to measure the loss on, recorded as ``held_out_loss``.
    """
    reference = world.reference()
    pair_loss = torch.vmap(partial(loss, beta=world.beta if beta is None else beta))

    def mean_loss(policy, data):
        places = [data.prompt * reference.shape[1] + side for side in (data.chosen, data.rejected)]
        tables = (policy().flatten(), reference.flatten())
        columns = [table.index_select(0, place) for table in tables for place in places]
        values = pair_loss(*(column[:, None] for column in columns))
        return (data.weights * values).sum() / data.weights.sum()

    batches = _batches(preferences, batch_size)
    if batch_size is not None:
        steps = len(preferences.weights) // batch_size

    def losses(policy):
        yield mean_loss(policy, next(batches))

    watch = None if held_out is None else lambda p: {"held_out_loss": mean_loss(p, held_out)}
    return descend(world, losses, steps, lr, watch=watch)


def _batches(preferences: Preferences, batch_size: int | None):
    """All preferences again and again, or the next ``batch_size`` of them each time."""
    if batch_size is not None:
        check_positive(batch_size=batch_size)
        columns = (column.split(batch_size) for column in preferences)
        yield from (Preferences(*batch) for batch in zip(*columns, strict=True))
        return
    together = merge_alike(preferences)
    while True:
        yield together
