"""Win rates: how often one model's answer beats another's to the same prompt.

The measure that papers on alignment report, with people, a judge model or a known reward as judge
(e.g. Ouyang et al. 2022, arXiv 2203.02155, figure 1).

Leaves out: judges; strengths of more than two models (:mod:`rlhf_minimal.bradley_terry`).
"""

import math

import torch

from rlhf_minimal.checks import check_same_shape

__all__ = ["interval", "win_rate"]


def win_rate(scores, opponent_scores) -> float:
    """The share of prompts on which our answer scores higher, a tie counting one half.

    (wins + ½·ties)/B. With ties at one half a model against itself has a win rate of exactly ½, and
    the two models' win rates add up to 1.

    Args:
        scores, opponent_scores: of both models' answers to the same prompts, ``(B,)`` each.

    Raises:
        ValueError: the shapes differ, there is no prompt, or a score is not a number.

    >>> win_rate(torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([1.0, 3.0, 2.0, 0.0]))
    0.625
    """
    check_same_shape(scores=scores, opponent_scores=opponent_scores)
    if scores.numel() == 0:
        raise ValueError("scores is empty; a win rate needs one prompt or more")
    if bool((torch.isnan(scores) | torch.isnan(opponent_scores)).any()):
        raise ValueError("a score is NaN, which neither wins nor loses; drop that prompt")
    wins = (scores > opponent_scores).double()
    ties = (scores == opponent_scores).double()
    return (wins + 0.5 * ties).mean().item()


def interval(values) -> dict[str, float]:
    """Mean, standard error, and the ends of a 95% interval (normal approximation).

    >>> interval([1.0, 0.0, 1.0, 0.0])["mean"]
    0.5
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(f"values have shape {tuple(values.shape)}; an error needs two or more")
    mean, error = values.mean().item(), (values.std() / math.sqrt(len(values))).item()
    return dict(mean=mean, se=error, low=mean - 1.96 * error, high=mean + 1.96 * error)
