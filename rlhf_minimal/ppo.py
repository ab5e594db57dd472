"""Proximal policy optimisation: several epochs on one rollout, without walking away from it.

Follows Schulman et al. 2017 (1707.06347). Departures: policy and value are separate networks; the
advantages are normalised in each minibatch; the learning rate falls linearly to zero.

Leaves out: observation normalisation, recurrent policies, continuous actions.
"""

from contextlib import closing

import torch
from torch import nn

from rlhf_minimal.checks import check_nonnegative, check_positive
from rlhf_minimal.environments import (
    evaluate_policy,
    make_environments,
    one_thread,
    rollouts,
    solved,
)
from rlhf_minimal.history import History, progress
from rlhf_minimal.kl import entropy
from rlhf_minimal.policy_gradient import action_log_probs, build_policy, mlp, normalise
from rlhf_minimal.ppo_losses import (
    approximate_kl,
    clip_fraction,
    clipped_policy_loss,
    explained_variance,
    gae,
    value_loss,
)

__all__ = [
    "ActorCritic",
    "approximate_kl",
    "clip_fraction",
    "clipped_policy_loss",
    "explained_variance",
    "gae",
    "train_ppo",
    "value_loss",
]


class ActorCritic(nn.Module):
    """Two MLPs on observations ``(..., D)``: logits ``(..., A)`` and, by ``value``, ``(...)``."""

    def __init__(self, observation_size: int, actions: int, hidden=(64, 64)):
        super().__init__()
        self.actor = mlp([observation_size, *hidden, actions], output_gain=0.01)
        self.critic = mlp([observation_size, *hidden, 1])

    def forward(self, observations):
        return self.actor(observations)

    def value(self, observations):
        return self.critic(observations).squeeze(-1)


@torch.no_grad()
def _score(policy, rollout, advantages, gamma, lam):
    """The rollout's real transitions as flat columns, scored by the policy that played them.

    One pass over the whole rollout gives every value: row ``t + 1`` is step ``t``'s next state.
    """
    keep = rollout.mask
    all_values = policy.value(rollout.observations)  # (T + 1, N)
    values, next_values = all_values[:-1], all_values[1:]
    estimates = advantages(
        rollout.rewards, values, next_values, rollout.terminated, rollout.done, gamma, lam
    )
    observations, actions = rollout.observations[:-1][keep], rollout.actions[keep]
    batch = {
        "observations": observations,  # (M, D), and (M,) below
        "actions": actions,
        "old_log_probs": action_log_probs(policy(observations), actions),
        "advantages": estimates[keep],
        "returns": (estimates + values)[keep],
    }
    return batch, values[keep]


@torch.no_grad()
def _watch(policy, batch, values, loss, clip) -> dict:
    """What one update did, measured after it over the whole rollout."""
    logits = policy(batch["observations"])
    ratio_of = action_log_probs(logits, batch["actions"]), batch["old_log_probs"]
    return {
        "loss": loss(**batch),
        "entropy": entropy(logits).mean(),
        "clip_fraction": clip_fraction(*ratio_of, clip),
        "approximate_kl": approximate_kl(*ratio_of),
        "explained_variance": explained_variance(values, batch["returns"]),
    }


def _update(
    policy, optimizer, batch, loss, generator, epochs, minibatch_size, max_grad_norm, target_kl
):
    """``epochs`` passes over the stored actions in shuffled minibatches.

    The actions are the rollout's: the ratio compares what two policies say of the *same* action. To
    sample new ones here is a known mistake, and such a policy never learns.
    """
    for _ in range(epochs):
        shuffled = torch.randperm(len(batch["actions"]), generator=generator)
        for index in shuffled.split(minibatch_size):
            optimizer.zero_grad()
            loss(**{name: column[index] for name, column in batch.items()}).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
            optimizer.step()
        if target_kl is not None:
            with torch.no_grad():
                log_probs = action_log_probs(policy(batch["observations"]), batch["actions"])
            if approximate_kl(log_probs, batch["old_log_probs"]) > target_kl:
                return


def train_ppo(
    env_id: str = "CartPole-v1",
    *,
    seed: int,
    max_steps: int,
    num_envs: int = 8,
    rollout_length: int = 128,
    epochs: int = 10,
    minibatch_size: int = 256,
    learning_rate: float = 3e-3,
    gamma: float = 0.99,
    lam: float = 0.95,
    clip: float = 0.2,
    value_coef: float = 0.5,
    entropy_coef: float = 0.0,
    max_grad_norm: float = 0.5,
    target_kl: float | None = None,
    hidden=(64, 64),
    policy_loss=clipped_policy_loss,
    value_loss=value_loss,
    advantages=gae,
    evaluate_every: int = 2_000,
    target_return: float | None = None,
    history: History | None = None,
    show_progress: bool = True,
):
    """Train an actor and a critic with PPO; the learning rate falls linearly to 0 at ``max_steps``.

    Args:
        env_id: a Gymnasium environment with discrete actions and flat observations.
        seed: of the networks, the actions, the environments and the evaluations.
        max_steps: environment steps to train for; the rollout that passes it is still used.
        num_envs, rollout_length: environments stepped together, steps of each in one rollout.
        epochs, minibatch_size: passes over a rollout, and steps in one gradient.
        learning_rate: Adam's, at the start.
        gamma, lam: discount and GAE's trace decay.
        clip: ε of the clipped surrogate.
        value_coef, entropy_coef: weights of the value loss and of the entropy bonus.
        max_grad_norm: longer gradients are shortened to this.
        target_kl: end an update after the epoch in which the approximate KL passes this.
        hidden: widths of both networks' hidden layers.
        policy_loss, value_loss, advantages: called as this file's own are.
        evaluate_every: environment steps between greedy evaluations over 20 episodes.
        target_return: stop once three evaluations in a row have reached it; ``None`` never stops.
        history: where to record; a row a rollout.

    Returns:
        ``(policy, history)``; the policy is an :class:`ActorCritic`. Rows hold ``steps``, ``loss``,
        ``mean_return`` where sampled episodes ended, ``greedy_return`` where the policy was
        evaluated, and what is watched: ``entropy``, ``clip_fraction``, ``approximate_kl``,
        ``explained_variance``.
    """
    check_positive(max_steps=max_steps, learning_rate=learning_rate, evaluate_every=evaluate_every)
    check_positive(rollout_length=rollout_length, epochs=epochs, minibatch_size=minibatch_size)
    check_positive(max_grad_norm=max_grad_norm)
    check_nonnegative(seed=seed, value_coef=value_coef, entropy_coef=entropy_coef)
    envs = make_environments(env_id, num_envs)
    policy = build_policy(ActorCritic, envs, hidden, seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    history = History() if history is None else history

    def loss(observations, actions, old_log_probs, advantages, returns):
        logits = policy(observations)
        log_probs = action_log_probs(logits, actions)
        return (
            policy_loss(log_probs, old_log_probs, normalise(advantages), clip)
            + value_coef * value_loss(policy.value(observations), returns)
            - entropy_coef * entropy(logits).mean()
        )

    steps, next_check = 0, evaluate_every
    with history, one_thread(), closing(envs), progress(max_steps, "PPO", show_progress) as bar:
        for rollout in rollouts(policy, envs, rollout_length, generator, seed):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - steps / max_steps)
            batch, values = _score(policy, rollout, advantages, gamma, lam)
            _update(
                policy,
                optimizer,
                batch,
                loss,
                generator,
                epochs,
                minibatch_size,
                max_grad_norm,
                target_kl,
            )
            steps += len(values)
            row = {"steps": steps} | _watch(policy, batch, values, loss, clip)
            if rollout.episode_returns:
                row["mean_return"] = sum(rollout.episode_returns) / len(rollout.episode_returns)
            if steps >= next_check:
                row["greedy_return"] = evaluate_policy(policy, env_id, seed=seed + steps).mean()
                next_check = steps + evaluate_every
            history.record(**row)
            bar.update(len(values))
            if steps >= max_steps or solved(history, target_return):
                return policy, history
