"""What PPO minimises and what it watches: GAE, the clipped surrogate, value loss, approximate KL.

Follows Schulman et al. 2017 (1707.06347) and, for generalised advantage estimation, Schulman et al.
2016 (1506.02438). Pure functions of tensors of any shape: ``(N,)`` for control, ``(B, T)`` with a
mask for language models. Lessons import them from ``ppo.py``.

Leaves out: value clipping, the adaptive KL penalty (``kl.py`` has the controller).
"""

import torch

from rlhf_minimal.checks import check_finite, check_mask, check_positive, check_same_shape
from rlhf_minimal.log_probs import masked_mean

__all__ = [
    "approximate_kl",
    "clip_fraction",
    "clipped_policy_loss",
    "explained_variance",
    "gae",
    "value_loss",
]


def gae(rewards, values, next_values, terminated, done, gamma: float, lam: float):
    """Generalised advantage estimation.

    ``δ_t = r_t + γ·V(s_{t+1}) − V(s_t)`` and ``A_t = δ_t + γλ·A_{t+1}`` (Schulman et al. 2016,
    eq. 16, as a recursion). λ = 1 gives the return less the value (no bias, much variance), λ = 0
    the TD error alone.

    A pole that fell and a clock that ran out are different ends. After termination there is no
    future: ``V(s_{t+1})`` counts as 0 and is not even read. After truncation the future exists but
    was not played: ``V(s_{t+1})`` stands for it. The recursion stops at both, since the next step
    belongs to another episode.

    Args:
        rewards, values: of each step, shape ``(T, ...)``, time first.
        next_values: value of the state each step *led to* (before any reset), ``(T, ...)``.
        terminated: 1 where no future is left to bootstrap, ``(T, ...)``.
        done: 1 where the episode ended, terminated or truncated, ``(T, ...)``.
        gamma, lam: discount and trace decay, both in [0, 1].

    Returns:
        Advantages, shape ``(T, ...)``.

    Raises:
        ValueError: shapes differ, a number is not finite, gamma or lam is outside [0, 1], or a step
            is terminated and not done.

    >>> one, zero, last = torch.ones(2), torch.zeros(2), torch.tensor([0.0, 1.0])
    >>> gae(one, zero, 10 * last, zero, last, gamma=0.5, lam=1.0)        # truncated: 1 + 0.5 * 10
    tensor([4., 6.])
    >>> gae(one, zero, 10 * last, last, last, gamma=0.5, lam=1.0)        # terminated: 1 and no more
    tensor([1.5000, 1.0000])
    """
    check_same_shape(
        rewards=rewards, values=values, next_values=next_values, terminated=terminated, done=done
    )
    for name, number in (("gamma", gamma), ("lam", lam)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} is {number}; it lies in [0, 1]")
    if bool((terminated.bool() & ~done.bool()).any()):
        raise ValueError("a step is terminated but not done; done = terminated or truncated")
    next_values = next_values.masked_fill(terminated.bool(), 0.0)
    for name, tensor in (("rewards", rewards), ("values", values), ("next_values", next_values)):
        check_finite(name, tensor)
    deltas = rewards + gamma * next_values - values
    decay = gamma * lam * (~done.bool()).to(deltas.dtype)
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        running = deltas[t] + decay[t] * running
        advantages[t] = running
    return advantages


def _masked_log_ratio(log_probs, old_log_probs, mask, **others):
    """``log π_new − log π_old``, 0 where masked out.

    Zeros go in *before* ``exp``: masking afterwards multiplies a NaN's gradient by 0, which is NaN.
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, **others)
    log_ratio = log_probs - old_log_probs
    if mask is None:
        return log_ratio
    check_mask(mask, log_probs, "log_probs")
    return log_ratio.masked_fill(mask == 0, 0.0)


def clipped_policy_loss(log_probs, old_log_probs, advantages, clip: float = 0.2, mask=None):
    """PPO's clipped surrogate, negated: ``-mean(min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A))``.

    ``ρ = π(a|s) / π_old(a|s)`` (Schulman et al. 2017, eq. 7). It is the *ratio* that is clipped.
    The minimum takes the pessimist's side: once ρ has gone past the range in the direction that A
    asks for, the gradient is zero; where it went the *wrong* way, the gradient stays.

    Args:
        log_probs: of the actions taken in the rollout, under the policy being trained, any shape.
        old_log_probs: of the same actions under the policy that took them; no gradient.
        advantages: of the same actions; no gradient.
        clip: ε, above 0.
        mask: 1 = counts, same shape; entries masked out may be anything, NaN included.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, nothing to average, or ``clip`` is not above 0.

    >>> loss = clipped_policy_loss(torch.tensor([1.5, 0.5]).log(), torch.zeros(2), torch.ones(2))
    >>> round(loss.item(), 4)                                # -(1.2 + 0.5) / 2
    -0.85
    """
    check_positive(clip=clip)
    ratio = _masked_log_ratio(log_probs, old_log_probs, mask, advantages=advantages).exp()
    advantages = advantages.detach()
    if mask is not None:
        advantages = advantages.masked_fill(mask == 0, 0.0)
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -masked_mean(surrogate, mask)


def value_loss(values, returns, mask=None):
    """Mean squared error ``mean((V(s) − R)²)``, without a factor ½ (Schulman et al. 2017, eq. 9).

    Args:
        values: of the critic, any shape, with gradient.
        returns: its targets, e.g. advantages + the rollout's values, same shape; no gradient.
        mask: 1 = counts, same shape; entries masked out may be anything.

    Returns:
        A scalar, in squared units of reward.

    >>> value_loss(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0]))
    tensor(5.)
    """
    check_same_shape(values=values, returns=returns)
    error = values - returns.detach()
    if mask is not None:
        check_mask(mask, values)
        error = error.masked_fill(mask == 0, 0.0)
    return masked_mean(error.square(), mask)


@torch.no_grad()
def clip_fraction(log_probs, old_log_probs, clip: float = 0.2, mask=None):
    """Share of actions whose ratio left ``[1 − ε, 1 + ε]``. Watched, never trained on.

    >>> clip_fraction(torch.tensor([1.5, 1.1, 0.7, 1.0]).log(), torch.zeros(4))
    tensor(0.5000)
    """
    ratio = _masked_log_ratio(log_probs, old_log_probs, mask).exp()
    return masked_mean(((ratio - 1).abs() > clip).float(), mask)


@torch.no_grad()
def approximate_kl(log_probs, old_log_probs, mask=None):
    """Estimate of KL(π_old‖π), how far the update moved the policy. Watched, or a reason to stop.

    The actions came from π_old, so the log-ratio in the course's convention (sampled policy first)
    is ``l = log π_old − log π``. This is the mean of ``k3 = exp(−l) − 1 + l`` (Schulman 2020):
    unbiased and never negative.

    >>> approximate_kl(torch.tensor([2.0]).log(), torch.tensor([1.0]).log())    # 2 - 1 - log 2
    tensor(0.3069)
    """
    log_ratio = -_masked_log_ratio(log_probs, old_log_probs, mask)
    return masked_mean((-log_ratio).expm1() + log_ratio, mask)


@torch.no_grad()
def explained_variance(values, returns):
    """``1 − Var(R − V) / Var(R)``, how much of the returns the critic foresaw.

    1 for a perfect critic, 0 for a constant one, below 0 for one that is worse than a constant. NaN
    where all returns are equal: there is no variance to explain.

    >>> explained_variance(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
    tensor(0.7500)
    """
    check_same_shape(values=values, returns=returns)
    spread = returns.var(correction=0)
    unexplained = (returns - values).var(correction=0) / spread
    return (1 - unexplained).where(spread > 0, torch.nan)
