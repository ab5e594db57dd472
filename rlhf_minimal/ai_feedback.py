"""AI feedback: what a judge's verdicts are worth, and how they become preferences.

Pure functions of verdicts, probabilities and scores, whoever the judge is. The judges themselves:
:mod:`rlhf_minimal.toy_judge` (the kitchen's, with biases that can be turned up) and
:mod:`rlhf_minimal.large_judge` (any transformers model); what they are asked:
:mod:`rlhf_minimal.judge_prompts`; critique and revision: :mod:`rlhf_minimal.constitution`.

Follows Zheng et al. 2023, arXiv 2306.05685 (judges and their biases), Bai et al. 2022, arXiv
2212.08073 (soft labels) and Yuan et al. 2024, arXiv 2401.10020 (self-rewarding).

Leaves out: correcting a bias by regression; agreement with people (:mod:`rlhf_minimal.agreement`).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from rlhf_minimal.checks import check_finite, check_same_shape
from rlhf_minimal.judge_prompts import pairwise_prompt, parse_score, parse_verdict, single_prompt
from rlhf_minimal.pairs import TokenPair
from rlhf_minimal.win_rates import interval

__all__ = [
    "PositionBias",
    "consistent_verdicts",
    "pairwise_prompt",
    "parse_score",
    "parse_verdict",
    "position_bias",
    "self_preference",
    "self_rewarding_pairs",
    "single_prompt",
    "soft_pairwise_loss",
    "soft_preference",
    "swap_average",
    "verbosity_bias",
]

VERDICTS = ("A", "B", "tie", None)
SWAPPED = {"A": "B", "B": "A", "tie": "tie", None: None}


class PositionBias(NamedTuple):
    """Shares of the pairs that were judged in both orders; they sum to 1."""

    consistent: float  # the same answer (or a tie) in both orders
    first: float  # leans to whatever stands first
    second: float  # leans to whatever stands second
    unreadable: float  # no verdict in at least one order


def position_bias(verdicts, swapped) -> PositionBias:
    """What a judge does when the two answers change places.

    "A" in both orders is a lean to the first place, and so is "A" in one with a tie in the other.
    (Zheng et al. 2023 report the same four shares.)

    Args:
        verdicts: "A", "B", "tie" or ``None`` for each pair, as :func:`parse_verdict` gives them.
        swapped: the same pairs' verdicts with the answers exchanged. "A" always means the answer
            that stood first *in that prompt*.

    Returns:
        A :class:`PositionBias`.

    Raises:
        ValueError: the lengths differ, there is no pair, or a verdict is something else.

    >>> position_bias(["A", "A", "B", None], ["B", "A", "tie", "A"])
    PositionBias(consistent=0.25, first=0.25, second=0.25, unreadable=0.25)
    """
    verdicts, swapped = _checked(verdicts, swapped)
    counts = dict.fromkeys(PositionBias._fields, 0)
    for two in zip(verdicts, swapped, strict=True):
        if None in two:
            counts["unreadable"] += 1
        elif two[0] == SWAPPED[two[1]]:
            counts["consistent"] += 1
        else:  # A and A, or A and a tie; else B and B, or B and a tie
            counts["first" if "A" in two else "second"] += 1
    return PositionBias(**{name: count / len(verdicts) for name, count in counts.items()})


def consistent_verdicts(verdicts, swapped) -> list[str | None]:
    """The verdicts that survive exchanging the answers; the others become ``None``.

    Args:
        verdicts, swapped: as for :func:`position_bias`.

    Returns:
        For each pair "A" or "B" (in the order of ``verdicts``) or "tie" where both orders say so,
        else ``None``: no label is better than a label that says where the answer stood.

    >>> consistent_verdicts(["A", "A", "tie", "B"], ["B", "A", "tie", None])
    ['A', None, 'tie', None]
    """
    both = zip(*_checked(verdicts, swapped), strict=True)
    return [one if one == SWAPPED[two] else None for one, two in both]


def _checked(verdicts, swapped):
    verdicts, swapped = list(verdicts), list(swapped)
    if len(verdicts) != len(swapped) or not verdicts:
        raise ValueError(
            f"there are {len(verdicts)} verdicts and {len(swapped)} swapped ones; a pair has both"
        )
    for verdict in (*verdicts, *swapped):
        if verdict not in VERDICTS:
            raise ValueError(f"{verdict!r} is no verdict; it must be 'A', 'B', 'tie' or None")
    return verdicts, swapped


def soft_preference(log_prob_a, log_prob_b):
    """P(first is better) from the probabilities of "(A)" and "(B)": p_A/(p_A + p_B).

    Of all that a judge could say next only two words are verdicts; what is left of the probability
    does not count (Bai et al. 2022: normalised probabilities as soft targets).

    Args:
        log_prob_a, log_prob_b: log-probabilities, or logits of the same softmax, of the two words,
            ``(B,)`` each: what they share cancels. Not the probabilities themselves.

    Returns:
        Probabilities ``(B,)``: 0.5 where the judge cannot tell.

    >>> soft_preference(torch.tensor([0.06]).log(), torch.tensor([0.02]).log())
    tensor([0.7500])
    """
    check_same_shape(log_prob_a=log_prob_a, log_prob_b=log_prob_b)
    return torch.sigmoid(log_prob_a - log_prob_b)


def swap_average(probability, swapped):
    """P(first is better) without the place: mean of p and 1 − p of the exchanged prompt, ``(B,)``.

    >>> swap_average(torch.tensor([0.9]), torch.tensor([0.7]))  # 0.9 and 0.3
    tensor([0.6000])
    """
    check_same_shape(probability=probability, swapped=swapped)
    return (probability + 1 - swapped) / 2


def soft_pairwise_loss(first, second, probability):
    """Bradley–Terry's likelihood under soft labels: −p·log σ(r₁ − r₂) − (1 − p)·log σ(r₂ − r₁).

    Args:
        first, second: rewards ``(B,)`` of the two answers.
        probability: p, that the first one is better, ``(B,)``; 1 gives ``pairwise_loss``.

    >>> soft_pairwise_loss(torch.zeros(1), torch.zeros(1), torch.tensor([0.75]))
    tensor(0.6931)
    """
    check_same_shape(first=first, second=second, probability=probability)
    if not bool(((probability >= 0) & (probability <= 1)).all()):
        raise ValueError("probability must lie between 0 and 1")
    return F.binary_cross_entropy_with_logits(first - second, probability)


def verbosity_bias(padded_wins) -> dict[str, float]:
    """How often a judge prefers an answer to itself with sentences added that say nothing.

    Args:
        padded_wins: for each answer P(the padded one is better), the place averaged out
            (:func:`swap_average`); or 1 and 0. A fair judge stays below 0.5, and never above.

    Returns:
        Mean with its 95% interval, as :func:`rlhf_minimal.win_rates.interval` gives it.
    """
    return interval(padded_wins)


def self_preference(judged_wins, true_wins) -> dict[str, float]:
    """By how much more often a judge lets its own answers win than who knows better does.

    Args:
        judged_wins: P(the judge's own answer is better) by the judge itself, ``(N,)``.
        true_wins: the same by people, or by the gold reward: 1, 0, or ½ for a tie.

    Returns:
        Mean of the differences with its 95% interval: 0 is fair, above 0 is self-preference. A
        high win rate alone is not: its own answers may be the better ones.
    """
    judged = torch.as_tensor(judged_wins, dtype=torch.float64)
    true = torch.as_tensor(true_wins, dtype=torch.float64)
    check_same_shape(judged_wins=judged, true_wins=true)
    return interval(judged - true)


def self_rewarding_pairs(prompts, candidates, scores) -> list[TokenPair]:
    """Each prompt's best and worst answer by the model's own scores, as a preference pair.

    Args:
        prompts: ``P`` prompts (token ids).
        candidates: for each prompt its N answers (token ids).
        scores: for each prompt the N scores, ``(P, N)``; or ``(P, N, S)``, S judgings an answer,
            which are averaged: one reading of an answer is a noisy grade.

    Returns:
        At most P pairs. A prompt whose best and worst score are equal gives none, nor does one
        whose two answers are the same text. Of equal scores the earlier answer stands.

    Raises:
        ValueError: the shapes do not fit, or a score is NaN.

    >>> self_rewarding_pairs([[7]], [[[1], [2], [3]]], [[[4, 2], [5, 5], [1, 0]]])
    [TokenPair(prompt=[7], chosen=[2], rejected=[3])]
    """
    scores = torch.as_tensor(scores, dtype=torch.float64)
    shape = (len(prompts), len(candidates[0]) if len(candidates) else 0)
    if scores.dim() not in (2, 3) or scores.shape[:2] != shape or len(candidates) != shape[0]:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)}; with {shape[0]} prompts of {shape[1]} "
            f"candidates it must be {shape} or {shape} by judgings"
        )
    check_finite("scores", scores)
    means = scores.mean(-1) if scores.dim() == 3 else scores
    pairs = []
    for prompt, answers, row in zip(prompts, candidates, means, strict=True):
        best, worst = int(row.argmax()), int(row.argmin())
        if row[best] > row[worst] and answers[best] != answers[worst]:
            pairs.append(TokenPair(prompt, answers[best], answers[worst]))
    return pairs
