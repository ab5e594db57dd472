"""REINFORCE: make actions that were followed by much reward more likely.

Follows Williams (1992) and Sutton & Barto (2nd ed., 2018), chapter 13: the gradient of the
expected return is ``E[Σ_t ∇log π(a_t|s_t) · G_t]``, so descending ``-mean(log π · G)`` climbs it.
Departures: a batch of whole episodes an update instead of one, and Sutton & Barto's factor ``γ^t``
is dropped, as nearly everyone does.

Leaves out: a learned baseline (``ppo.py`` has a critic), continuous actions, recurrent policies.
"""

from contextlib import closing
from itertools import pairwise

import torch
from torch import nn

from rlhf_minimal.checks import check_finite, check_nonnegative, check_positive, check_same_shape
from rlhf_minimal.environments import (
    evaluate_policy,
    make_environments,
    one_thread,
    play_episodes,
    solved,
)
from rlhf_minimal.history import History, progress

__all__ = [
    "Policy",
    "action_log_probs",
    "build_policy",
    "discounted_returns",
    "evaluate_policy",
    "mlp",
    "no_baseline",
    "normalise",
    "policy_gradient_loss",
    "subtract_mean",
    "train_reinforce",
]


def discounted_returns(rewards, gamma: float):
    """Discounted sum of the rewards from each step to the episode's end (the "reward to go").

    ``G_t = r_t + γ·G_{t+1}`` with ``G_T = 0`` (Sutton & Barto, eq. 3.9). What came before a step is
    no part of its return: an action cannot change the past.

    Args:
        rewards: of one episode, shape ``(T,)``.
        gamma: discount factor from 0 (only the next reward counts) to 1 (all count alike).

    Returns:
        Returns, shape ``(T,)``.

    Raises:
        ValueError: ``rewards`` is empty, not of shape ``(T,)`` or not finite, or ``gamma`` is
            outside [0, 1].

    >>> discounted_returns(torch.tensor([1.0, 0.0, 2.0]), gamma=0.5)
    tensor([1.5000, 1.0000, 2.0000])
    """
    check_same_shape(rewards=rewards)
    if rewards.dim() != 1:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}; pass one episode, (T,)")
    check_finite("rewards", rewards)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}; a discount factor lies in [0, 1]")
    returns, total = [], 0.0
    for reward in reversed(rewards.tolist()):  # Python floats: far faster than tensor by tensor
        total = reward + gamma * total
        returns.append(total)
    dtype = rewards.dtype if rewards.is_floating_point() else torch.float32
    return torch.tensor(returns[::-1], dtype=dtype, device=rewards.device)


def no_baseline(returns):
    """The returns themselves: unbiased, noisy; if all are positive, every action is pushed up."""
    return returns


def subtract_mean(returns):
    """Returns less their mean over the batch, shape ``(N,) -> (N,)``.

    A baseline that does not depend on the action leaves the gradient's expectation as it is, since
    ``E[∇log π] = 0``. (The batch's own mean contains each action's own return and so shrinks the
    gradient by ``1/N``: a scale, not a direction.)

    >>> subtract_mean(torch.tensor([1.0, 2.0, 6.0]))
    tensor([-2., -1.,  3.])
    """
    return returns - returns.mean()


def normalise(values, eps: float = 1e-8):
    """Zero mean and unit standard deviation over the whole batch, shape ``(N,) -> (N,)``.

    Dividing by the *population* deviation keeps a batch of one finite: the sample deviation of one
    number is 0/0, and a one-step episode would turn the policy into NaN.

    >>> normalise(torch.tensor([1.0, 3.0])), normalise(torch.tensor([7.0]))
    (tensor([-1.,  1.]), tensor([0.]))
    """
    # In float32 the mean of equal numbers may be off by an ulp, and an ulp over eps is not 0.
    exact = values.double()
    centred = exact - exact.mean()
    return (centred / (centred.square().mean().sqrt() + eps)).to(values.dtype)


def action_log_probs(logits, actions):
    """Log-probability of each action taken, shapes ``(..., A), (...) -> (...)``.

    >>> action_log_probs(torch.zeros(2, 4), torch.tensor([3, 0])).exp()
    tensor([0.2500, 0.2500])
    """
    return logits.log_softmax(dim=-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def policy_gradient_loss(log_probs, weights):
    """The REINFORCE loss ``-mean(log π(a|s) · weight)``.

    Its gradient is minus the policy gradient; its *value* does not fall as the policy gets better.

    Args:
        log_probs: of the actions taken, shape ``(N,)``, with gradient.
        weights: how good each was (returns, or returns less a baseline), shape ``(N,)``; detached
            here, so that no gradient flows into a critic they may have come from.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ, or there is nothing to average.

    >>> policy_gradient_loss(torch.tensor([-1.0, -0.5]), torch.tensor([2.0, 4.0]))
    tensor(2.)
    """
    check_same_shape(log_probs=log_probs, weights=weights)
    return -(log_probs * weights.detach()).mean()


def mlp(sizes, output_gain: float = 1.0) -> nn.Sequential:
    """Linear layers with tanh between them, orthogonal weights, zero biases.

    A small ``output_gain`` makes a policy start near uniform.
    """
    layers = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        layer = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(layer.weight, gain=output_gain if last else 2**0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


class Policy(nn.Module):
    """An MLP from observations ``(..., D)`` to the logits of a categorical policy ``(..., A)``."""

    def __init__(self, observation_size: int, actions: int, hidden=(64, 64)):
        super().__init__()
        self.logits = mlp([observation_size, *hidden, actions], output_gain=0.01)

    def forward(self, observations):
        return self.logits(observations)


def build_policy(kind, envs, hidden, seed: int):
    """``kind(observation_size, actions, hidden)`` for ``envs``, weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):  # the caller's global random state stays as it is
        torch.manual_seed(seed)
        return kind(envs.single_observation_space.shape[0], int(envs.single_action_space.n), hidden)


def train_reinforce(
    env_id: str = "CartPole-v1",
    *,
    seed: int,
    max_steps: int,
    num_envs: int = 16,
    gamma: float = 0.99,
    learning_rate: float = 7e-3,
    hidden=(64, 64),
    returns=discounted_returns,
    baseline=normalise,
    loss=policy_gradient_loss,
    evaluate_every: int = 5_000,
    target_return: float | None = None,
    history: History | None = None,
    show_progress: bool = True,
):
    """Train a policy with REINFORCE on batches of whole episodes.

    Args:
        env_id: a Gymnasium environment with discrete actions and flat observations.
        seed: of the network, the actions, the environments and the evaluations.
        max_steps: environment steps to train for; the batch that passes it is played to its end.
        num_envs: episodes in one batch.
        gamma: discount factor.
        learning_rate: Adam's.
        hidden: widths of the hidden layers.
        returns: ``(rewards (T,), gamma) -> (T,)``, called once an episode.
        baseline: ``(N,) -> (N,)``, from the batch's returns to the weights of the loss.
        loss: ``(log_probs (N,), weights (N,)) -> scalar``.
        evaluate_every: environment steps between greedy evaluations over 20 episodes.
        target_return: stop once three evaluations in a row have reached it; ``None`` never stops.
        history: where to record; a row an update.

    Returns:
        ``(policy, history)``; rows hold ``steps``, ``mean_return`` of the batch's sampled episodes,
        ``loss``, and ``greedy_return`` where the policy was evaluated.
    """
    check_positive(max_steps=max_steps, learning_rate=learning_rate, evaluate_every=evaluate_every)
    check_nonnegative(seed=seed)
    envs = make_environments(env_id, num_envs)
    policy = build_policy(Policy, envs, hidden, seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    history = History() if history is None else history
    steps, next_check, environment_seed = 0, evaluate_every, seed
    with (
        history,
        one_thread(),
        closing(envs),
        progress(max_steps, "REINFORCE", show_progress) as bar,
    ):
        while steps < max_steps and not solved(history, target_return):
            episodes = play_episodes(policy, envs, generator, environment_seed)
            environment_seed = None  # from here on the environments' random state runs on
            mask = episodes.mask
            per_episode = [
                returns(episodes.rewards[:, i][mask[:, i]].float(), gamma) for i in range(num_envs)
            ]
            # (N, T) order on both sides, so that return and action of one step stay together
            observations = episodes.observations.transpose(0, 1)[mask.T]
            actions = episodes.actions.T[mask.T]
            log_probs = action_log_probs(policy(observations), actions)
            batch_loss = loss(log_probs, baseline(torch.cat(per_episode)))
            optimizer.zero_grad()
            batch_loss.backward()
            optimizer.step()
            steps += len(actions)
            row = {"steps": steps, "loss": batch_loss.detach()}
            row["mean_return"] = episodes.rewards.sum(dim=0).mean()
            if steps >= next_check:
                row["greedy_return"] = evaluate_policy(policy, env_id, seed=seed + steps).mean()
                next_check = steps + evaluate_every
            history.record(**row)
            bar.update(len(actions))
    return policy, history
