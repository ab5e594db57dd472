"""Rollouts of a language-model policy: prompts in, sampled answers with their masks out.

State = context, action = next token, episode = answer. What PPO, RLOO, GRPO and best-of-n share.

Leaves out: tools and several turns; an episode is one answer.
"""

import math
from typing import NamedTuple

import torch

from rlhf_minimal.checks import check_finite, check_positive
from rlhf_minimal.log_probs import answer_log_probs, pad_sequences
from rlhf_minimal.sampling import generate

__all__ = [
    "Rollouts",
    "best_of_n",
    "best_of_n_kl",
    "log_ratios",
    "sample_rollouts",
    "score_rollouts",
]


class Rollouts(NamedTuple):
    """``B`` prompts with the answers that a policy gave, padded on the right; each ``(B, T)``."""

    tokens: torch.Tensor
    attention_mask: torch.Tensor  # 1 on prompts and answers
    mask: torch.Tensor  # 1 on answers, the end token included

    def answers(self) -> list[list[int]]:
        """The answers as lists of token ids, each with its end token if it has one."""
        pairs = zip(self.tokens.tolist(), self.mask.tolist(), strict=True)
        return [[t for t, m in zip(row, mask, strict=True) if m] for row, mask in pairs]

    def rows(self, index) -> "Rollouts":
        """Some of the rollouts."""
        return Rollouts(*(tensor[index] for tensor in self))


def sample_rollouts(
    policy, prompts, *, max_new_tokens: int, end_id: int, pad_id: int = 0, **sampling
) -> Rollouts:
    """Let ``policy`` answer each prompt.

    Args:
        prompts: ``B`` lists of token ids.
        sampling: temperature, top_k, top_p, generator, … as for ``generate``.
            Policy gradients assume samples of the policy itself: temperature 1, nothing cut off.
    """
    tokens, attention_mask = pad_sequences(prompts, pad_id, left=True)
    device = next(policy.parameters()).device
    prompt_length = tokens.shape[1]
    tokens, attention_mask = generate(
        policy,
        tokens.to(device),
        attention_mask.to(device),
        max_new_tokens=max_new_tokens,
        end_id=end_id,
        pad_id=pad_id,
        **sampling,
    )
    mask = attention_mask.clone()
    mask[:, :prompt_length] = 0
    return _padded_on_the_right(Rollouts(tokens, attention_mask, mask))


def _padded_on_the_right(rollouts: Rollouts) -> Rollouts:
    """The same rows without their left padding: fewer columns, and plain causal attention."""
    order = rollouts.attention_mask.argsort(dim=-1, descending=True, stable=True)
    width = int(rollouts.attention_mask.sum(-1).max())
    return Rollouts(*(tensor.gather(-1, order)[:, :width] for tensor in rollouts))


@torch.no_grad()
def log_ratios(policy, reference, rollouts: Rollouts):
    """log π − log π_ref of each answer token, ``(B, T - 1)``, zeros outside the answers.

    Their sum over a row is one sample's log-ratio: an estimate of the KL divergence, not the KL.
    """
    return answer_log_probs(policy, *rollouts) - answer_log_probs(reference, *rollouts)


def score_rollouts(score, rollouts: Rollouts):
    """``score(rollouts)``, once it is sure to be one finite number an answer, ``(B,)``."""
    scores = score(rollouts)
    if scores.shape != rollouts.tokens.shape[:1]:
        raise ValueError(
            f"score gave shape {tuple(scores.shape)} for {len(rollouts.tokens)} answers; "
            f"it must be ({len(rollouts.tokens)},)"
        )
    check_finite("scores", scores)
    return scores if scores.is_floating_point() else scores.float()  # counts and verdicts too


def best_of_n(policy, score, prompts, n: int, **sampling) -> Rollouts:
    """The best of ``n`` sampled answers to each prompt, by ``score``: RLHF without training.

    Args:
        score: called as ``score(rollouts) -> (B·n,)``.
        prompts: ``B`` lists of token ids.
        sampling: as for :func:`sample_rollouts`.

    Returns:
        ``B`` rollouts. Their KL from the policy is at most :func:`best_of_n_kl`.
    """
    check_positive(n=n)
    repeated = [prompt for prompt in prompts for _ in range(n)]
    rollouts = sample_rollouts(policy, repeated, **sampling)
    scores = score_rollouts(score, rollouts)
    best = scores.view(len(prompts), n).argmax(-1)  # (B,)
    return rollouts.rows(torch.arange(len(prompts)) * n + best.cpu())


def best_of_n_kl(n: int) -> float:
    """An upper bound of best-of-n's KL from its policy, log n − (n − 1)/n nats.

    Exact where no two answers score the same and each answer is rare (Beirami et al. 2024, arXiv
    2401.01879, who also show that it is a bound only).

    >>> round(best_of_n_kl(16), 4)
    1.8351
    """
    check_positive(n=n)
    return math.log(n) - (n - 1) / n
