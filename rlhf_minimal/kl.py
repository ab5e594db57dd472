"""Kullback–Leibler divergence: exact, from logits, estimated from samples, and held at a target.

Throughout the package ``log_ratio`` means log π − log π_ref **on samples from π**, so that
KL(π‖π_ref) = E_π[log_ratio]. Turn it round and the estimates are those of another quantity,
negative on average for k1; published course code does so.

Follows Schulman 2020, "Approximating KL divergence" (the estimators), and Ziegler et al. 2019,
arXiv 1909.08593, section 2.2 (the controller).

Leaves out: divergences between continuous distributions; they need densities, not tables.
"""

import torch

from rlhf_minimal.checks import check_finite, check_mask, check_positive, check_same_shape

__all__ = [
    "AdaptiveKL",
    "entropy",
    "kl_divergence",
    "kl_estimates",
    "kl_from_logits",
    "sequence_kl",
]


def kl_divergence(p, q, dim: int = -1):
    """KL(p‖q) = Σ p·log(p/q) of categorical distributions, in nats.

    Args:
        p, q: probabilities of one shape, each summing to 1 along ``dim``.
        dim: the dimension over which the outcomes run.

    Returns:
        ``p``'s shape without ``dim``. Where p is 0 the term is 0 (0·log 0 = 0); where q is 0 and
        p is not, the divergence is infinite.

    Raises:
        ValueError: shapes differ, an entry is negative or not finite, or a row does not sum to 1.

    >>> kl_divergence(torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.1, 0.4, 0.5]))
    tensor(0.0970)
    >>> kl_divergence(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
    tensor(inf)
    """
    check_same_shape(p=p, q=q)
    for name, probabilities in (("p", p), ("q", q)):
        check_finite(name, probabilities)
        total = probabilities.sum(dim)
        if bool((probabilities < 0).any()) or bool(((total - 1).abs() > 1e-3).any()):
            raise ValueError(
                f"{name} is no distribution: its smallest entry is "
                f"{probabilities.min().item():.4g} and its sums over dim {dim} run from "
                f"{total.min().item():.4g} to {total.max().item():.4g}; "
                "pass probabilities, not logits (see kl_from_logits)"
            )
    # xlogy(0, anything) is 0, which is the limit that the definition asks for.
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(dim)


def _log_softmax(name: str, logits, dim: int):
    """``logits.log_softmax(dim)``; an error where that would be NaN."""
    log_probs = logits.log_softmax(dim)
    if bool(log_probs.isnan().any()):
        raise ValueError(
            f"{name} are no logits of a distribution: each row needs a finite entry, and none may "
            "be nan or +inf"
        )
    return log_probs


def kl_from_logits(p_logits, q_logits, dim: int = -1):
    """KL(p‖q) in nats of the distributions softmax(p_logits) and softmax(q_logits).

    Works in log space, so logits of ±1000 do no harm; a logit of −inf is a probability of 0.

    Args:
        p_logits, q_logits: unnormalised log-probabilities of one shape.

    Returns:
        ``p_logits``'s shape without ``dim``.

    Raises:
        ValueError: shapes differ, or logits are no distribution (NaN, +inf, or all of a row −inf).

    >>> p, q = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.1, 0.4, 0.5])
    >>> kl_from_logits(p.log() + 100.0, q.log() - 50.0)
    tensor(0.0970)
    """
    check_same_shape(p_logits=p_logits, q_logits=q_logits)
    log_p = _log_softmax("p_logits", p_logits, dim)
    log_q = _log_softmax("q_logits", q_logits, dim)
    p = log_p.exp()
    # Where p is 0 the difference may be −inf + inf; its term is 0 by the definition.
    return (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(dim)


def kl_estimates(log_p, log_q):
    """Three estimates of KL(p‖q), one a sample, from samples of **p**.

    With l = log p − log q at each sample (Schulman 2020):

    - k1 = l: unbiased, but noisy and often negative;
    - k2 = l²/2: never negative, little noise, biased;
    - k3 = exp(−l) − 1 + l: never negative and unbiased (its added term has mean zero under p).

    As a *loss* they trade places: see the lesson on KL.

    Args:
        log_p, log_q: log-probabilities of the sampled outcomes, one shape, any shape.

    Returns:
        ``(k1, k2, k3)``, each of that shape, in nats. Average them to estimate the divergence.

    >>> k1, k2, k3 = kl_estimates(torch.tensor([-1.0]), torch.tensor([-1.5]))
    >>> round(k1.item(), 4), round(k2.item(), 4), round(k3.item(), 4)
    (0.5, 0.125, 0.1065)
    """
    check_same_shape(log_p=log_p, log_q=log_q)
    log_ratio = log_p - log_q
    return log_ratio, log_ratio.square() / 2, torch.expm1(-log_ratio) + log_ratio


def sequence_kl(p_logits, q_logits, mask):
    """KL between two sequence distributions, estimated from sequences that p sampled.

    By the chain rule the divergence of whole sequences is the expected sum of the per-token
    divergences along sequences from p; each of those is computed exactly here, over the vocabulary.

    Args:
        p_logits, q_logits: next-token logits along the sampled sequences, ``(B, T, V)``.
        mask: 1 where the position's *next token* was sampled by p, ``(B, T)``.

    Returns:
        ``(B,)``, in nats a sequence; the mean over ``B`` estimates the divergence.
    """
    check_same_shape(p_logits=p_logits, q_logits=q_logits)
    check_mask(mask, p_logits[..., 0], "logits (without their last dimension)")
    counts = mask != 0
    per_token = kl_from_logits(p_logits[counts], q_logits[counts])  # (B, T, V) -> (n,)
    return torch.zeros_like(p_logits[..., 0]).masked_scatter(counts, per_token).sum(-1)


def entropy(logits, dim: int = -1):
    """Entropy −Σ p·log p of softmax(logits), in nats.

    >>> entropy(torch.zeros(4))  # log 4
    tensor(1.3863)
    """
    log_p = _log_softmax("logits", logits, dim)
    p = log_p.exp()
    return -(p * log_p.masked_fill(p == 0, 0.0)).sum(dim)


class AdaptiveKL:
    """A proportional controller that moves β until the measured KL stands at a target.

    Ziegler et al. 2019, section 2.2: e = clip(KL/target − 1, −0.2, 0.2) and
    β ← β·(1 + e·n/horizon), where n is the number of samples since the last update.
    A KL above target raises β; larger β keeps the policy *closer* to the reference.

    Args:
        beta: where β starts; above 0, because a product never leaves 0.
        target: the KL to hold, in nats a sequence.
        horizon: samples over which an error of 20% changes β by about 20%.

    >>> controller = AdaptiveKL(beta=0.1, target=6.0, horizon=1000)
    >>> round(controller.update(kl=12.0, samples=100), 4)  # far too high: e is clipped to 0.2
    0.102
    """

    def __init__(self, beta: float, target: float, horizon: int = 10_000):
        check_positive(beta=beta, target=target, horizon=horizon)
        self.beta, self.target, self.horizon = beta, target, horizon

    def update(self, kl: float, samples: int) -> float:
        """Take one measured KL (nats) over ``samples`` sequences; returns the new β."""
        if kl != kl:
            raise ValueError("kl is nan; the controller needs the measured divergence")
        check_positive(samples=samples)
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + error * min(samples / self.horizon, 1.0)
        return self.beta
