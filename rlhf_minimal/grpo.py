"""Policy gradients without a value model: compare the answers to one prompt with each other.

Follows Ahmadian et al. 2024, arXiv 2402.14740 (RLOO); Shao et al. 2024, arXiv 2402.03300 (GRPO);
Liu et al. 2025, arXiv 2503.20783 (what GRPO's two divisions do).

Leaves out: rewards for single steps of an answer, and asynchronous sampling.
"""

import torch

from rlhf_minimal.checks import check_finite, check_mask, check_nonnegative, check_same_shape
from rlhf_minimal.groups import train_on_groups
from rlhf_minimal.history import History
from rlhf_minimal.kl import kl_estimates
from rlhf_minimal.log_probs import masked_mean
from rlhf_minimal.ppo import clipped_policy_loss

__all__ = [
    "group_relative_advantages",
    "grpo_loss",
    "informative_groups",
    "rloo_advantages",
    "rloo_loss",
    "train_grpo",
    "train_rloo",
]


def rloo_advantages(rewards):
    """Each reward minus the mean of the *other* rewards of its group: a baseline free of bias.

    A_i = r_i − (Σ_{j≠i} r_j)/(G − 1). The baseline does not depend on answer i, so the gradient's
    expectation is untouched (Ahmadian et al. 2024, section 3.3).

    Args:
        rewards: ``(B, G)``: ``G`` ≥ 2 answers for each of ``B`` prompts.

    Returns:
        ``(B, G)``, each row summing to 0.

    Raises:
        ValueError: fewer than two answers a group, or a reward that is NaN or infinite.

    >>> rloo_advantages(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[-3.0000, -1.5000,  4.5000]])
    """
    group = _check_groups(rewards)
    others_mean = (rewards.sum(-1, keepdim=True) - rewards) / (group - 1)
    return rewards - others_mean


def group_relative_advantages(rewards, normalize_by_std: bool = True, eps: float = 1e-6):
    """Each reward minus its group's mean, divided by the group's standard deviation.

    A_i = (r_i − mean r)/(std r + ε), with the sample deviation (n − 1). Shao et al. 2024, section
    4.1.2. The division gives every prompt the same say, the very easy and the very hard ones too,
    which is a bias (Liu et al. 2025); ``normalize_by_std=False`` leaves it out.

    Args:
        rewards: ``(B, G)``: ``G`` ≥ 2 answers for each of ``B`` prompts.
        eps: keeps groups of equal rewards at advantage 0 instead of 0/0.

    Returns:
        ``(B, G)``, each row summing to 0.

    >>> group_relative_advantages(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]))
    tensor([[-0.7559, -0.3780,  1.1339],
            [ 0.0000,  0.0000,  0.0000]])
    """
    _check_groups(rewards)
    # From the first reward on, so that equal rewards differ by 0 exactly and not by a rounding
    # error, which the division would blow up.
    shifted = rewards - rewards[:, :1]
    centred = shifted - shifted.mean(-1, keepdim=True)
    if not normalize_by_std:
        return centred
    return centred / (shifted.std(-1, keepdim=True) + eps)


def informative_groups(rewards):
    """Which groups have something to compare: not all their rewards are equal.

    Without the others a batch costs less and loses nothing (Yu et al. 2025, arXiv 2503.14476,
    sample until the batch is full of such groups). Compared are the rewards themselves: the mean of
    equal numbers may differ from them in its last bit.

    Args:
        rewards: ``(B, G)``.

    Returns:
        ``(B,)``, booleans.

    >>> informative_groups(torch.tensor([[1.0, 0.0, 1.0], [0.2, 0.2, 0.2]])).tolist()
    [True, False]
    """
    _check_groups(rewards)
    return (rewards != rewards[:, :1]).any(-1)


def _check_groups(rewards) -> int:
    """The group size, after checks."""
    check_same_shape(rewards=rewards)
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)}; they must be (B, G) with G of 2 or more: "
            "one answer alone has nothing to be compared with"
        )
    check_finite("rewards", rewards)
    return rewards.shape[1]


def grpo_loss(
    log_probs, old_log_probs, ref_log_probs, advantages, mask, beta: float = 0.04, clip: float = 0.2
):
    """The clipped surrogate plus β times the KL estimate k3, the mean over answer tokens.

    Shao et al. 2024, equation 3, averaged over all tokens of the batch (as Yu et al. 2025, arXiv
    2503.14476, do; Liu et al. 2025 divide by a constant) instead of within each answer first, which
    would favour long wrong answers.

    Args:
        log_probs, old_log_probs, ref_log_probs: of the sampled tokens, ``(B, T)``; only the first
            has a gradient.
        advantages: one an answer, ``(B,)``: every token of an answer gets the same.
        mask: 1 on answer tokens, ``(B, T)``.
        beta: price of a nat of KL a token, at least 0. k3 is unbiased as an estimate, but its
            gradient is not that of the KL (see the lesson on KL).

    Returns:
        A scalar.
    """
    check_nonnegative(beta=beta)
    check_mask(mask, log_probs, "log_probs")
    check_same_shape(advantages=advantages, answers=mask[:, 0])
    # Zeros go in before exp: behind it, what stands in the padding could still spoil the gradient.
    log_probs = log_probs.masked_fill(mask == 0, 0.0)
    ref_log_probs = ref_log_probs.masked_fill(mask == 0, 0.0)
    per_token = advantages[:, None].expand_as(log_probs)
    surrogate = clipped_policy_loss(log_probs, old_log_probs, per_token, clip, mask)
    return surrogate + beta * masked_mean(kl_estimates(log_probs, ref_log_probs)[2], mask)


def rloo_loss(log_probs, advantages, mask):
    """REINFORCE on whole answers: −A·log π(y|x), the mean over answers.

    Args:
        log_probs: of the sampled tokens, ``(B, T)``.
        advantages: of rewards from which β·log(π/π_ref) has been taken already, ``(B,)``.
        mask: 1 on answer tokens, ``(B, T)``.
    """
    check_mask(mask, log_probs, "log_probs")
    check_same_shape(advantages=advantages, answers=mask[:, 0])
    sequence_log_probs = torch.where(mask != 0, log_probs, 0.0).sum(-1)
    return -(advantages.detach() * sequence_log_probs).mean()


def train_grpo(
    policy,
    reference,
    score,
    prompts,
    *,
    beta: float = 0.04,
    clip: float = 0.2,
    advantages=group_relative_advantages,
    loss=grpo_loss,
    **options,
) -> History:
    """Train ``policy`` in place by GRPO: sample a group of answers a prompt, compare within it.

    Args:
        score: called as ``score(rollouts) -> (B,)``: a reward model's, or a verifier's.
        prompts: lists of token ids, from which each step draws some.
        beta: price of the KL, in the loss. Rewards are measured in standard deviations of their
            group here, so this β is no number to compare with PPO's.
        advantages: called as ``advantages(rewards) -> (B, G)``.
        loss: called as :func:`grpo_loss` is.
        options: those of :func:`rlhf_minimal.groups.train_on_groups`: steps, max_new_tokens,
            end_id, group_size, ….
    """
    check_nonnegative(beta=beta)

    def group_loss(log_probs, old_log_probs, ref_log_probs, advantage, mask):
        return loss(log_probs, old_log_probs, ref_log_probs, advantage, mask, beta, clip)

    def shaped(scores, log_ratio):
        return scores

    everything = (policy, reference, score, prompts, shaped, advantages, group_loss)
    return train_on_groups(*everything, label="GRPO", **options)


def train_rloo(
    policy,
    reference,
    score,
    prompts,
    *,
    beta: float = 0.1,
    advantages=rloo_advantages,
    loss=rloo_loss,
    **options,
) -> History:
    """Train ``policy`` in place by RLOO: REINFORCE on r − β·log(π/π_ref), baseline leave-one-out.

    One descent step a batch: there is no ratio here that would correct for a second.

    Args:
        beta: price of a nat of KL, in the reward, as PPO's.
        loss: called as :func:`rloo_loss` is.
        options: those of :func:`rlhf_minimal.groups.train_on_groups`.
    """
    check_nonnegative(beta=beta)

    def group_loss(log_probs, old_log_probs, ref_log_probs, advantage, mask):
        return loss(log_probs, advantage, mask)

    def shaped(scores, log_ratio):
        return scores - beta * log_ratio

    everything = (policy, reference, score, prompts, shaped, advantages, group_loss)
    return train_on_groups(*everything, label="RLOO", epochs=1, **options)
