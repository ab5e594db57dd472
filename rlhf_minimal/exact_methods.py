"""Every method of the course, trained in the exact world of ``exact.py`` from the same reference.

Each ``train_*`` starts a policy at the reference and returns it trained, with a history of its
exact KL(π‖π*), the distance from the optimum. The losses, advantages and shaped rewards are the
package's, those that train language models. The learning rate falls to 0 along a line.

Leaves out: what only a neural network needs (warm-up, gradient clipping, minibatches).
"""

from functools import partial
from typing import NamedTuple

import torch

from rlhf_minimal.checks import check_positive
from rlhf_minimal.dpo import dpo_loss
from rlhf_minimal.exact import World, objective
from rlhf_minimal.grpo import rloo_advantages
from rlhf_minimal.history import History
from rlhf_minimal.kl import kl_estimates, kl_from_logits
from rlhf_minimal.policy_gradient import policy_gradient_loss
from rlhf_minimal.ppo import clipped_policy_loss, value_loss
from rlhf_minimal.rlhf import kl_shaped_rewards, token_advantages, whiten
from rlhf_minimal.training import learning_rate_factor

__all__ = [
    "Preferences",
    "population_preferences",
    "sample_preferences",
    "train_exact_gradient",
    "train_group",
    "train_on_preferences",
    "train_ppo_exact",
]


class Preferences(NamedTuple):
    """Comparisons by number: ``chosen`` and ``rejected`` are places in the list of all answers.

    ``weights`` sum to 1 and say what share of all comparisons each one is.
    """

    prompt: torch.Tensor  # (N,)
    chosen: torch.Tensor  # (N,)
    rejected: torch.Tensor  # (N,)
    weights: torch.Tensor  # (N,)


def population_preferences(world: World) -> Preferences:
    """All preferences that there are, each with its probability: infinitely many labels.

    A prompt is drawn evenly, two answers from the reference, and a is preferred to b with
    probability σ(r_a − r_b) (Bradley–Terry). An answer compared with itself is left out: it teaches
    nothing.

    >>> from rlhf_minimal.exact import make_world
    >>> len(population_preferences(make_world()).weights)  # 4 prompts · 125 · 124 ordered pairs
    62000
    """
    reference, rewards = world.reference(), world.rewards
    drawn = (reference[:, :, None] + reference[:, None, :]).exp()  # (P, Y, Y)
    preferred = torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])
    weights = drawn * preferred * (1 - torch.eye(drawn.shape[-1], dtype=drawn.dtype))
    where = weights.nonzero(as_tuple=True)
    return Preferences(*where, weights[where] / weights.sum())


def sample_preferences(world: World, count: int, generator: torch.Generator) -> Preferences:
    """``count`` comparisons drawn from the same distribution, like ones put together.

    Both answers come from the reference, so some pairs compare an answer with itself; they stay in,
    since they were paid for.
    """
    check_positive(count=count)
    reference, rewards = world.reference(), world.rewards
    prompt = torch.randint(len(reference), (count,), generator=generator)
    pair = torch.multinomial(reference.exp()[prompt], 2, replacement=True, generator=generator)
    a, b = pair.T
    preferred = torch.sigmoid(rewards[prompt, a] - rewards[prompt, b])
    a_wins = torch.rand(count, generator=generator, dtype=preferred.dtype) < preferred
    rows = torch.stack([prompt, torch.where(a_wins, a, b), torch.where(a_wins, b, a)])
    kinds, counts = rows.unique(dim=1, return_counts=True)
    return Preferences(*kinds, counts.to(reference.dtype) / count)


def train_exact_gradient(world: World, *, steps: int = 2000, lr: float = 0.1):
    """Climb the objective itself, by enumeration: what policy gradients would do without noise."""
    reference = world.reference()

    def losses(policy):
        yield -objective(policy(), reference, world.rewards, world.beta)

    return _descend(world, losses, steps, lr)


def train_group(
    world: World,
    *,
    advantages=rloo_advantages,
    kl_in: str = "reward",
    group: int = 16,
    steps: int = 2000,
    lr: float = 0.05,
    seed: int = 0,
):
    """RLOO and GRPO: ``group`` sampled answers to each prompt, compared with each other.

    Args:
        advantages: ``(P, G) -> (P, G)``: :func:`rloo_advantages`, ``group_relative_advantages``, ….
        kl_in: where the KL penalty enters: ``"reward"`` takes β·log(π/π_ref) off each reward, as
            RLOO does; ``"k2"`` and ``"k3"`` add β times that estimate to the loss, which is then
            differentiated (GRPO: k3).
    """
    estimate = {"reward": None, "k2": 1, "k3": 2}
    if kl_in not in estimate:
        raise ValueError(f"kl_in is {kl_in!r}; it must be one of {sorted(estimate)}")
    reference, generator = world.reference(), torch.Generator().manual_seed(seed)

    def losses(policy):
        answers = policy.sample(group, generator)  # (P, G)
        log_probs, rewards = policy().gather(1, answers), world.rewards.gather(1, answers)
        log_ratio = log_probs - reference.gather(1, answers)
        if kl_in == "reward":
            rewards = rewards - world.beta * log_ratio.detach()
        loss = policy_gradient_loss(log_probs.flatten(), advantages(rewards).flatten())
        if kl_in != "reward":
            estimates = kl_estimates(log_probs, (log_probs - log_ratio).detach())
            loss = loss + world.beta * estimates[estimate[kl_in]].mean()
        yield loss

    return _descend(world, losses, steps, lr)


def train_ppo_exact(
    world: World,
    *,
    group: int = 16,
    steps: int = 1000,
    epochs: int = 2,
    lr: float = 0.05,
    lam: float = 1.0,
    clip: float = 0.2,
    whitening: bool = False,
    seed: int = 0,
):
    """RLHF with PPO: per-token KL-shaped rewards, a table of values, GAE, the clipped surrogate.

    Args:
        group: answers to each prompt in a rollout batch; ``epochs`` steps are taken on each batch.
        whitening: scale the advantages of each batch to variance 1. At π* they are all 0, and
            whitening would blow up what noise remains; so it is off unless asked for.
    """
    reference, generator = world.start(), torch.Generator().manual_seed(seed)
    prompts = torch.arange(len(world.rewards)).repeat_interleave(group)  # (B,) with B = P·G
    values = torch.zeros_like(world.reference_logits[..., 0], requires_grad=True)  # (P, R)

    def losses(policy):
        answers = policy.sample(group, generator).flatten()  # (B,)
        rows = (prompts[:, None], policy.rows[answers])  # of the values, (B, T)
        with torch.no_grad():
            old = policy.token_log_probs()[prompts, answers]  # (B, T)
            ref = reference.token_log_probs()[prompts, answers]
            mask, scores = torch.ones_like(old), world.rewards[prompts, answers]
            rewards = kl_shaped_rewards(scores, old, ref, mask, world.beta)
            advantages, returns = token_advantages(rewards, values[rows], mask, lam=lam)
            advantages = whiten(advantages, mask) if whitening else advantages
        for _ in range(epochs):
            log_probs = policy.token_log_probs()[prompts, answers]
            policy_term = clipped_policy_loss(log_probs, old, advantages, clip)
            yield policy_term + value_loss(values[rows], returns)

    return _descend(world, losses, steps, lr, extra=[values])


def train_on_preferences(
    world: World,
    preferences: Preferences,
    *,
    loss=dpo_loss,
    beta: float | None = None,
    steps: int = 300,
    lr: float = 0.1,
    held_out: Preferences | None = None,
):
    """DPO and its relatives on all preferences at once.

    Args:
        loss: called as ``loss(policy_chosen, policy_rejected, reference_chosen,
            reference_rejected, beta=beta)`` with ``(B,)`` log-probabilities, here one pair at a
            time (under ``torch.vmap``), so that each pair's loss can carry its weight.
        beta: of the loss; ``None`` takes the world's.
        held_out: comparisons to measure the loss on, recorded as ``held_out_loss``.
    """
    reference = world.reference()
    pair_loss = torch.vmap(partial(loss, beta=world.beta if beta is None else beta))

    def mean_loss(policy, data):
        chosen, rejected = (data.prompt, data.chosen), (data.prompt, data.rejected)
        log_probs = policy()
        pairs = (log_probs[chosen], log_probs[rejected], reference[chosen], reference[rejected])
        return (data.weights * pair_loss(*(column[:, None] for column in pairs))).sum()

    def losses(policy):
        yield mean_loss(policy, preferences)

    watch = None if held_out is None else lambda p: {"held_out_loss": mean_loss(p, held_out)}
    return _descend(world, losses, steps, lr, watch=watch)


def _descend(world, losses, steps, lr, *, extra=(), watch=None, rows: int = 100):
    """Adam on what ``losses(policy)`` yields, a step each; about ``rows`` measurements."""
    check_positive(steps=steps, lr=lr)
    policy, history, optimum = world.start(), History(steps=steps, lr=lr), world.optimum()
    optimizer = torch.optim.Adam([*policy.parameters(), *extra], lr=lr)

    def measure(step):
        with torch.no_grad():
            distance = kl_from_logits(policy(), optimum).mean()
            history.record(step=step, kl=distance, **(watch(policy) if watch else {}))

    measure(0)
    for step in range(1, steps + 1):
        factor = learning_rate_factor(step - 1, steps, schedule="linear")
        optimizer.param_groups[0]["lr"] = lr * factor
        for loss in losses(policy):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % max(1, steps // rows) == 0:
            measure(step)
    return policy, history
