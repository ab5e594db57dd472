"""A world small enough to list, in which every claim about RLHF can be checked to the last digit.

Four prompts, five tokens, answers of three tokens: 125 answers to a prompt. Expectations are sums
over all of them, the policy is a table with one row of logits for each prefix, and the optimum of
the RLHF objective is known in closed form. Whatever a method claims to optimise, here one can look
how far it ends from there (``exact_methods.py`` does).

Follows Korbak et al. 2022, arXiv 2205.11275, and Rafailov et al. 2023, arXiv 2305.18290, appendix
A.1 (the optimum of the KL-regularised objective).

Leaves out: generalisation. A table learns nothing about one prefix from another, so what a neural
network adds, for better or worse, does not show here.
"""

from typing import NamedTuple

import torch
from torch import nn

from rlhf_minimal.checks import check_finite, check_positive, check_same_shape
from rlhf_minimal.kl import kl_from_logits

__all__ = [
    "TabularPolicy",
    "World",
    "all_answers",
    "make_world",
    "objective",
    "optimal_policy",
    "optimality_gap",
    "prefix_rows",
]


def optimal_policy(reference_log_probs, rewards, beta: float):
    """The policy that maximises E_π[r] − β·KL(π‖π_ref), as log-probabilities.

    π*(y|x) = π_ref(y|x)·exp(r(x,y)/β)/Z(x) with Z(x) = Σ_y π_ref(y|x)·exp(r(x,y)/β): the reference,
    each answer weighted by the exponential of its reward (Rafailov et al. 2023, equation 4).

    Args:
        reference_log_probs: log π_ref of **all** ``Y`` answers, ``(..., Y)``. An answer which the
            reference never gives (−inf) stays impossible, whatever its reward.
        rewards: of the same answers, ``(..., Y)``.
        beta: above 0; *larger stays closer* to the reference.

    Returns:
        log π*, ``(..., Y)``; the probabilities sum to 1 over the last dimension.

    Raises:
        ValueError: shapes differ, beta ≤ 0, a reward is not finite, or a reference log-probability
            is NaN, +inf or −inf for every answer to a prompt.

    Two answers, equally likely; where the second's reward is β·log 3, it is three times as likely:

    >>> reference = torch.tensor([0.5, 0.5]).log()
    >>> rewards = 0.5 * torch.tensor([1.0, 3.0]).log()
    >>> optimal_policy(reference, rewards, beta=0.5).exp()
    tensor([0.2500, 0.7500])
    """
    check_same_shape(reference_log_probs=reference_log_probs, rewards=rewards)
    check_positive(beta=beta)
    check_finite("rewards", rewards)
    impossible = torch.isneginf(reference_log_probs)
    check_finite("reference_log_probs", reference_log_probs.masked_fill(impossible, 0.0))
    if bool(impossible.all(-1).any()):
        raise ValueError(
            "reference_log_probs are -inf for every answer to a prompt; the reference must be able "
            "to give one of them"
        )
    return (reference_log_probs + rewards / beta).log_softmax(-1)


def objective(log_probs, reference_log_probs, rewards, beta: float):
    """What RLHF maximises, E_π[r] − β·KL(π‖π_ref), summed over all answers: nothing is sampled.

    Differentiable; its gradient is the one that policy-gradient methods estimate.

    Args:
        log_probs, reference_log_probs, rewards: of all answers, ``(P, Y)``.
        beta: 0 or above.

    Returns:
        A scalar in units of reward, the mean over the ``P`` prompts.

    >>> log_probs = torch.tensor([[0.25, 0.75]]).log()
    >>> objective(log_probs, log_probs, torch.tensor([[0.0, 4.0]]), beta=0.5)  # 0.75·4, and no KL
    tensor(3.)
    """
    check_same_shape(log_probs=log_probs, reference_log_probs=reference_log_probs, rewards=rewards)
    expected_reward = (log_probs.exp() * rewards).sum(-1)  # (P, Y) -> (P,)
    return (expected_reward - beta * kl_from_logits(log_probs, reference_log_probs)).mean()


def optimality_gap(log_probs, reference_log_probs, rewards, beta: float):
    """How much of the objective is still to be had: objective(π*) − objective(π), never negative.

    It equals β·KL(π‖π*): put r = β·log(π*/π_ref) + β·log Z into the objective. So the one number
    KL(π‖π*) says both how far a policy is from the optimum and what that costs.

    >>> log_probs = torch.tensor([[0.5, 0.5]]).log()
    >>> optimality_gap(log_probs, log_probs, torch.tensor([[1.0, 1.0]]), beta=0.5)  # all alike
    tensor(0.)
    """
    best = optimal_policy(reference_log_probs, rewards, beta)
    reached = objective(log_probs, reference_log_probs, rewards, beta)
    return objective(best, reference_log_probs, rewards, beta) - reached


def all_answers(vocabulary: int, length: int):
    """Every answer of ``length`` tokens, ``(Y, T)`` with Y = vocabulary ** length, in order.

    >>> all_answers(vocabulary=2, length=2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    check_positive(vocabulary=vocabulary, length=length)
    return torch.cartesian_prod(*[torch.arange(vocabulary)] * length).reshape(-1, length)


def prefix_rows(answers, vocabulary: int):
    """The row of the policy's table from which each token of each answer is drawn, ``(Y, T)``.

    Rows are numbered by length, then in order: the empty prefix is row 0, the one-token prefixes
    follow, then those of two tokens. A prefix's children are ``row * vocabulary + 1 + token``.

    >>> prefix_rows(torch.tensor([[0, 0, 1], [1, 0, 1]]), vocabulary=2).tolist()
    [[0, 1, 3], [0, 2, 5]]
    """
    rows = [torch.zeros(len(answers), dtype=torch.long)]
    for tokens in answers.T[:-1]:
        rows.append(rows[-1] * vocabulary + 1 + tokens)
    return torch.stack(rows, dim=-1)


class TabularPolicy(nn.Module):
    """An autoregressive policy with next-token logits of its own for each prompt and prefix.

    It can represent every distribution over the answers, π* included, so what a method fails to
    reach is the method's doing and not the policy's.

    Args:
        logits: ``(P, R, V)`` for ``P`` prompts, ``R`` = 1 + V + V² + … prefixes and ``V`` tokens.
        length: tokens of an answer.

    >>> policy = TabularPolicy(torch.zeros(4, 31, 5), length=3)
    >>> policy().shape, policy.token_log_probs().shape
    (torch.Size([4, 125]), torch.Size([4, 125, 3]))
    """

    def __init__(self, logits, length: int):
        super().__init__()
        vocabulary = logits.shape[-1]
        rows = sum(vocabulary**t for t in range(length))
        if logits.dim() != 3 or logits.shape[1] != rows:
            raise ValueError(
                f"logits have shape {tuple(logits.shape)}; for answers of {length} tokens out of "
                f"{vocabulary} they must be (P, {rows}, {vocabulary}), a row for every prefix"
            )
        self.logits = nn.Parameter(logits.detach().clone())
        self.answers = all_answers(vocabulary, length)  # (Y, T)
        self.rows = prefix_rows(self.answers, vocabulary)  # (Y, T)

    def token_log_probs(self):
        """log π(token | prompt, prefix) of every token of every answer, ``(P, Y, T)``."""
        return self.logits.log_softmax(-1)[:, self.rows, self.answers]

    def forward(self):
        """log π(answer | prompt) of every answer, ``(P, Y)``."""
        return self.token_log_probs().sum(-1)

    @torch.no_grad()
    def sample(self, group: int, generator: torch.Generator):
        """``group`` answers to every prompt, as places in ``answers``: ``(P, G)``.

        One draw from the list of all answers has the same distribution as token after token.
        """
        return torch.multinomial(self().exp(), group, replacement=True, generator=generator)


class World(NamedTuple):
    """Prompts with their reference policy, the reward of every answer, and the price of KL."""

    reference_logits: torch.Tensor  # (P, R, V)
    rewards: torch.Tensor  # (P, Y)
    beta: float
    length: int

    def start(self) -> TabularPolicy:
        """A policy equal to the reference, to be trained."""
        return TabularPolicy(self.reference_logits, self.length)

    @torch.no_grad()
    def reference(self):
        """log π_ref of every answer, ``(P, Y)``."""
        return self.start()()

    def optimum(self):
        """log π* of every answer, ``(P, Y)``."""
        return optimal_policy(self.reference(), self.rewards, self.beta)

    def distance(self, log_probs):
        """KL(π‖π*) in nats an answer, the mean over prompts; 0 at the optimum and only there."""
        return kl_from_logits(log_probs, self.optimum()).mean()


def make_world(
    seed: int = 0,
    *,
    prompts: int = 4,
    vocabulary: int = 5,
    length: int = 3,
    beta: float = 0.5,
    dtype=torch.float64,
) -> World:
    """A random world: normal reference logits; rewards that are half a matter of single tokens.

    An answer's reward is the sum of what each token is worth at its place (which credit assignment
    can find) and of a part of its own (which only whole answers show), 0.83 in deviation together.

    >>> world = make_world(seed=0)
    >>> world.rewards.shape, round(world.distance(world.reference()).item(), 2)
    (torch.Size([4, 125]), 1.11)
    """
    check_positive(prompts=prompts, vocabulary=vocabulary, length=length, beta=beta)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    rows = sum(vocabulary**t for t in range(length))
    reference_logits = normal(prompts, rows, vocabulary) / 2
    worth, place = normal(prompts, length, vocabulary), torch.arange(length)
    by_token = worth[:, place, all_answers(vocabulary, length)].sum(-1)  # (P, Y, T) -> (P, Y)
    whole = normal(prompts, vocabulary**length)
    rewards = 0.83 * (by_token / length**0.5 + whole) / 2**0.5
    return World(reference_logits, rewards, beta, length)
