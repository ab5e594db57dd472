"""What a model does on preferences that it was not trained on, with 95% intervals.

Two questions that are easily confused:

- Does the *model* give the chosen answer the larger log-probability? It can be asked of any model,
  before training too. Summed it favours short answers; per token it does not.
- Does the *implicit reward* β·log(π/π_ref) prefer the chosen answer, i.e. did training move the
  model the right way? Before training every such reward is 0, and the accuracy 0.5 by definition.

Follows Wilson 1927 for the interval of a share, and Rafailov et al. 2023, arXiv 2305.18290, for the
implicit reward.

Leaves out: corrections for looking at several numbers at once.
"""

import math
import random

import torch

from rlhf_minimal.checks import check_positive, check_same_shape

__all__ = ["held_out_report", "mean_interval", "split_by_prompt", "wilson_interval"]

Z = 1.959964  # the 97.5% point of the standard normal distribution


def split_by_prompt(preferences, held_out: int, seed: int = 0):
    """Shuffled training and held-out preferences that have no prompt in common.

    Args:
        preferences: :class:`~rlhf_minimal.preferences.Preference` s.
        held_out: pairs to set aside; all pairs of a prompt go together, so it may be a few more.

    Returns:
        ``(training, held_out)``, two lists.

    Raises:
        ValueError: too few pairs to set that many aside and still train on some.
    """
    by_prompt: dict[str, list] = {}
    for preference in preferences:
        by_prompt.setdefault(preference.prompt, []).append(preference)
    prompts = sorted(by_prompt)
    random.Random(seed).shuffle(prompts)
    training, aside = [], []
    for prompt in prompts:
        (aside if len(aside) < held_out else training).extend(by_prompt[prompt])
    if len(aside) < held_out or not training:
        raise ValueError(
            f"held_out is {held_out} but there are {len(preferences)} good pairs with "
            f"{len(prompts)} different prompts; hold out fewer, so that some are left to train on"
        )
    return training, aside


def wilson_interval(wins: float, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval for a share: holds its level for small samples and shares near 0 or 1.

    >>> [round(bound, 4) for bound in wilson_interval(5, 10)]
    [0.2366, 0.7634]
    """
    check_positive(trials=trials)
    if not 0 <= wins <= trials:
        raise ValueError(f"wins is {wins}; it must be between 0 and trials = {trials}")
    share, z2 = wins / trials, Z * Z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    half = Z * spread / (1 + z2 / trials)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def mean_interval(values) -> tuple[float, float]:
    """Normal 95% interval of a mean, for samples of some dozens or more.

    >>> [round(bound, 3) for bound in mean_interval(torch.tensor([0.0, 2.0] * 50))]
    [0.803, 1.197]
    """
    check_same_shape(values=values)
    if len(values) < 2:
        raise ValueError("an interval needs two values or more")
    half = Z * values.double().std().item() / math.sqrt(len(values))
    return values.double().mean().item() - half, values.double().mean().item() + half


def _share(prefers) -> dict:
    wins = prefers.sum().item()
    return {"value": wins / len(prefers), "interval": wilson_interval(wins, len(prefers))}


def _mean(values) -> dict:
    return {"value": values.double().mean().item(), "interval": mean_interval(values)}


def _prefers_chosen(values):
    """1 where the chosen answer has the larger value, ½ for a tie: ``(N, 2) -> (N,)``."""
    gap = values[:, 0] - values[:, 1]
    return (gap > 0).double() + 0.5 * (gap == 0).double()


def held_out_report(before, after, lengths, beta: float) -> dict:
    """Held-out accuracies and margin, before and after training.

    Args:
        before, after: summed log-probabilities of the chosen and rejected answers, ``(N, 2)``.
        lengths: their tokens, ``(N, 2)``.
        beta: of the implicit reward.

    Returns:
        Name to ``{"value": ..., "interval": (low, high)}``. A ``..._change`` compares the same
        pairs before and after, so its interval is narrower than the two accuracies' own.
    """
    check_same_shape(before=before, after=after, lengths=lengths)
    report = {}
    for name, divisor in (("summed", torch.ones_like(before)), ("per_token", lengths)):
        prefers = [_prefers_chosen(values / divisor) for values in (before, after)]
        report[f"{name}_accuracy_before"] = _share(prefers[0])
        report[f"{name}_accuracy_after"] = _share(prefers[1])
        report[f"{name}_accuracy_change"] = _mean(prefers[1] - prefers[0])
    rewards = beta * (after - before)  # (N, 2), and 0 before training by definition
    report["reward_accuracy_after"] = _share(_prefers_chosen(rewards))
    report["reward_margin_after"] = _mean(rewards[:, 0] - rewards[:, 1])
    report["chosen_log_ratio_after"] = _mean((after - before)[:, 0])
    report["rejected_log_ratio_after"] = _mean((after - before)[:, 1])
    return report
