"""Policy gradients without a value model: compare the answers to one prompt with each other.

Follows Ahmadian et al. 2024, arXiv 2402.14740 (RLOO); Shao et al. 2024, arXiv 2402.03300 (GRPO);
Liu et al. 2025, arXiv 2503.20783 (what GRPO's two divisions do).

Leaves out: rewards for single steps of an answer, and asynchronous sampling.
"""


from rlhf_minimal.checks import check_finite, check_same_shape

__all__ = ["group_relative_advantages", "rloo_advantages"]


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
    centred = rewards - rewards.mean(-1, keepdim=True)
    if not normalize_by_std:
        return centred
    return centred / (rewards.std(-1, keepdim=True) + eps)


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
