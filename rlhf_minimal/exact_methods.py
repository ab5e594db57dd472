"""Policy gradients in the exact world of ``exact.py``: PPO, RLOO, GRPO and the exact gradient.

Each ``train_*`` starts a policy at the reference and returns it trained, with a history of its
exact KL(π‖π*), the distance from the optimum. The losses, advantages and shaped rewards are the
package's, those that train language models. The learning rate falls to 0 along a line. What trains
on comparisons stands in ``exact_preferences.py``.

Leaves out: what only a neural network needs (warm-up, gradient clipping, minibatches).
"""

import torch

from rlhf_minimal.checks import check_positive
from rlhf_minimal.exact import World, objective
from rlhf_minimal.grpo import rloo_advantages
from rlhf_minimal.history import History
from rlhf_minimal.kl import kl_estimates, kl_from_logits
from rlhf_minimal.policy_gradient import policy_gradient_loss
from rlhf_minimal.ppo import clipped_policy_loss, value_loss
from rlhf_minimal.rlhf import kl_shaped_rewards, token_advantages, whiten
from rlhf_minimal.training import learning_rate_factor

__all__ = [
    "descend",
    "train_exact_gradient",
    "train_group",
    "train_ppo_exact",
]


def train_exact_gradient(world: World, *, steps: int = 2000, lr: float = 0.1):
    """Climb the objective itself, by enumeration: what policy gradients would do without noise."""
    reference = world.reference()

    def losses(policy):
        yield -objective(policy(), reference, world.rewards, world.beta)

    return descend(world, losses, steps, lr)


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
            differentiated (GRPO: k3); ``"ratio k3"`` multiplies k3 by π/π_old first, which is 1 but
            has a gradient, and gives back what k3's alone lacks (TRL's ``use_bias_correction_kl``).
    """
    estimate = {"reward": None, "k2": 1, "k3": 2, "ratio k3": 2}
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
            ratio = (log_probs - log_probs.detach()).exp() if kl_in == "ratio k3" else 1.0
            loss = loss + world.beta * (ratio * estimates[estimate[kl_in]]).mean()
        yield loss

    return descend(world, losses, steps, lr)


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

    return descend(world, losses, steps, lr, extra=[values])


def descend(world, losses, steps, lr, *, extra=(), watch=None, rows: int = 100):
    """Adam from the reference on what ``losses(policy)`` yields, an update for each loss.

    Args:
        losses: called with the policy at each of ``steps`` steps; yields one loss or more.
        lr: falls to 0 along a line.
        extra: tensors to train beside the policy.
        watch: called with the policy; a dictionary of numbers to record beside the distance.
        rows: about how many measurements to take.

    Returns:
        The policy, and the history with ``step`` and ``kl``, the distance KL(π‖π*).
    """
    check_positive(steps=steps, lr=lr)
    policy, history, optimum = world.start(), History(steps=steps, lr=lr), world.optimum()
    optimizer = torch.optim.Adam([*policy.parameters(), *extra], lr=lr, fused=True)

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
