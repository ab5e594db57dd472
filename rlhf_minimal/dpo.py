"""Direct preference optimisation and its relatives: preferences without a reward model or sampling.

Follows Rafailov et al. 2023, arXiv 2305.18290 (DPO, equation 7); Mitchell 2023 (label smoothing,
"conservative DPO"); Azar et al. 2023, arXiv 2310.12036 (IPO, equation 17); Meng et al. 2024, arXiv
2405.14734 (SimPO, equation 6).

Leaves out: losses for unpaired labels, and generating new pairs while training.
"""

import torch
import torch.nn.functional as F

from rlhf_minimal.checks import check_nonnegative, check_positive, check_same_shape
from rlhf_minimal.history import History
from rlhf_minimal.pairs import train_on_pairs
from rlhf_minimal.scoring import reference_log_probs

__all__ = [
    "dpo_loss",
    "implicit_rewards",
    "ipo_loss",
    "reference_log_probs",
    "reward_accuracy",
    "reward_margin",
    "simpo_loss",
    "train_dpo",
    "train_simpo",
]


def implicit_rewards(policy, reference, beta: float = 0.1):
    """The reward that a policy acts as if it maximised: r̂(x, y) = β·(log π(y|x) − log π_ref(y|x)).

    Solving π* ∝ π_ref·exp(r/β) for r gives this plus a term of the prompt alone, which cancels in
    every comparison of two answers (Rafailov et al. 2023, equation 5).

    Args:
        policy, reference: summed log-probabilities of the same answers, one shape, in nats. No
            gradient goes to the reference's, even if they were computed with one.
        beta: strength of the pull to the reference; *larger stays closer*.

    Returns:
        Rewards of that shape.

    >>> implicit_rewards(torch.tensor([-10.0]), torch.tensor([-12.0]), beta=0.1)
    tensor([0.2000])
    """
    check_same_shape(policy=policy, reference=reference)
    check_nonnegative(beta=beta)
    return beta * (policy - reference.detach())


def dpo_loss(
    policy_chosen,
    policy_rejected,
    reference_chosen,
    reference_rejected,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
):
    """−log σ(r̂_chosen − r̂_rejected), the mean over pairs, with implicit rewards r̂ = β·log(π/π_ref).

    With ``label_smoothing`` ε the labels are taken to be wrong with probability ε:
    −(1 − ε)·log σ(h) − ε·log σ(−h), whose optimum is a finite margin log((1 − ε)/ε).

    Args:
        policy_chosen, policy_rejected: **summed** log-probabilities under the policy, ``(B,)``.
        reference_chosen, reference_rejected: the same under the reference, ``(B,)``, no gradient.
        beta: above 0; larger keeps the policy closer to the reference.
        label_smoothing: ε in [0, 0.5).

    Returns:
        A scalar in nats; log 2 = 0.6931 where policy and reference agree.

    Raises:
        ValueError: shapes differ or are empty, beta ≤ 0, label_smoothing outside [0, 0.5).

    >>> x = torch.tensor([-10.0])
    >>> dpo_loss(x, x, x, x)
    tensor(0.6931)
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 0.5)")
    margin = reward_margin(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    )
    loss = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    return loss.mean()


def ipo_loss(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta: float = 0.1
):
    """(h − 1/(2β))², the mean over pairs, h = log π/π_ref of chosen minus that of rejected.

    Azar et al. 2023, equation 17: a margin to hit instead of one to push to infinity, so
    labels that all agree cannot drive the policy from the reference without bound.

    Args and errors as for :func:`dpo_loss`. Where policy and reference agree it is 1/(4β²).

    >>> x = torch.tensor([-10.0])
    >>> ipo_loss(x, x, x, x, beta=0.5)
    tensor(1.)
    """
    h = reward_margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    return (h / beta - 1 / (2 * beta)).square().mean()


def simpo_loss(policy_chosen_mean, policy_rejected_mean, beta: float = 2.0, margin: float = 1.0):
    """−log σ(β·(m_chosen − m_rejected) − γ), the mean over pairs, m the log-probability *a token*.

    Meng et al. 2024, equation 6: the length-normalised log-probability is the reward, so no
    reference is needed and long answers earn nothing by length; γ asks for a margin.

    Args:
        policy_chosen_mean, policy_rejected_mean: **mean** log-probabilities a token, ``(B,)``.
        beta: scale of the reward, above 0 (about 2; not DPO's β, which multiplies a sum).
        margin: γ ≥ 0, in reward units.

    Returns:
        A scalar in nats.

    >>> simpo_loss(torch.tensor([-0.5]), torch.tensor([-1.0]), beta=2.0, margin=1.0)
    tensor(0.6931)
    """
    check_same_shape(
        policy_chosen_mean=policy_chosen_mean, policy_rejected_mean=policy_rejected_mean
    )
    check_positive(beta=beta)
    check_nonnegative(margin=margin)
    return -F.logsigmoid(beta * (policy_chosen_mean - policy_rejected_mean) - margin).mean()


def reward_margin(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta: float = 0.1
):
    """Implicit reward of chosen minus that of rejected, ``(B,)``: what DPO's sigmoid sees."""
    check_same_shape(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    check_positive(beta=beta)
    chosen = implicit_rewards(policy_chosen, reference_chosen, beta)
    return chosen - implicit_rewards(policy_rejected, reference_rejected, beta)


def reward_accuracy(chosen_rewards, rejected_rewards):
    """Share of pairs whose chosen answer has the larger reward; a tie counts one half.

    The tie matters: before training every implicit reward is 0, and the honest accuracy is 0.5.

    >>> reward_accuracy(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
    tensor(0.7500)
    """
    check_same_shape(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    wins = (chosen_rewards > rejected_rewards).float()
    return (wins + 0.5 * (chosen_rewards == rejected_rewards).float()).mean()


def train_dpo(
    policy,
    reference,
    pairs,
    *,
    loss=dpo_loss,
    beta: float = 0.1,
    pad_id: int = 0,
    share_prompts: bool = False,
    **options,
) -> History:
    """Train ``policy`` in place on preference pairs, against a frozen ``reference``.

    Args:
        policy: a causal language model, the course's GPT or a transformers model.
        reference: the model the policy started as; or its log-probabilities ``(N, 2)`` of chosen
            and rejected answers, from :func:`reference_log_probs`.
        pairs: ``N`` :class:`~rlhf_minimal.pairs.TokenPair`.
        loss: called as ``loss(policy_chosen, policy_rejected, reference_chosen,
            reference_rejected, beta=beta)`` with summed log-probabilities, ``(B,)`` each:
            :func:`dpo_loss`, :func:`ipo_loss` or your own.
        share_prompts: compute a prompt once for its answers, for policy and reference.
        options: those of :func:`rlhf_minimal.pairs.train_on_pairs`: steps, batch_size, lr, seed, ….

    Returns:
        The history: a row a step with loss, accuracy, margin, and the change of both likelihoods.
    """
    if not isinstance(reference, torch.Tensor):
        reference = reference_log_probs(reference, pairs, pad_id, share_prompts=share_prompts)
    if reference.shape != (len(pairs), 2):
        raise ValueError(
            f"reference log-probs have shape {tuple(reference.shape)} but there are {len(pairs)} "
            f"pairs; they must be ({len(pairs)}, 2)"
        )

    def pair_loss(log_probs, rows):
        expected = reference[rows].to(log_probs.chosen.device)
        sums = (log_probs.chosen, log_probs.rejected, expected[:, 0], expected[:, 1])
        value = loss(*sums, beta=beta)
        chosen = implicit_rewards(sums[0].detach(), sums[2], beta)
        rejected = implicit_rewards(sums[1].detach(), sums[3], beta)
        return value, dict(
            accuracy=reward_accuracy(chosen, rejected),
            margin=(chosen - rejected).mean(),
            chosen_log_ratio=(sums[0].detach() - sums[2]).mean(),
            rejected_log_ratio=(sums[1].detach() - sums[3]).mean(),
        )

    options |= dict(pad_id=pad_id, share_prompts=share_prompts)
    return train_on_pairs(policy, pairs, pair_loss, label="DPO", **options)


def train_simpo(
    policy, pairs, *, loss=simpo_loss, beta: float = 2.0, margin: float = 1.0, **options
) -> History:
    """Train ``policy`` in place by SimPO: no reference, log-probabilities a token.

    Args:
        loss: called as ``loss(policy_chosen_mean, policy_rejected_mean, beta=…, margin=…)``.
        options: those of :func:`rlhf_minimal.pairs.train_on_pairs`.
    """

    def pair_loss(log_probs, rows):
        chosen = log_probs.chosen / log_probs.chosen_lengths
        rejected = log_probs.rejected / log_probs.rejected_lengths
        accuracy = reward_accuracy(chosen.detach(), rejected.detach())
        gap = beta * (chosen - rejected).detach().mean()
        return loss(chosen, rejected, beta=beta, margin=margin), dict(accuracy=accuracy, margin=gap)

    return train_on_pairs(policy, pairs, pair_loss, label="SimPO", **options)
