"""Gymnasium environments, many at once: making them, playing whole episodes, greedy evaluation.

A vector environment steps ``N`` copies with one call. When a copy's episode ends, Gymnasium's
default autoreset (``NEXT_STEP``) hands out the true last observation, and the *following* call to
``step`` ignores the action and only resets that copy. That following step is no transition; whoever
stores steps must mask it, or learn that an action led from a fallen pole to a standing one.

Leaves out: continuous actions, image observations, environments in other processes.
"""

from contextlib import contextmanager
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch

from rlhf_minimal.checks import check_positive

__all__ = [
    "Episodes",
    "Rollout",
    "evaluate_policy",
    "make_environments",
    "one_thread",
    "play_episodes",
    "rollouts",
    "solved",
]


def make_environments(env_id: str, num_envs: int):
    """``num_envs`` copies of one environment, stepped together, resetting in the next step.

    Uses the environment's own vectorised form where Gymnasium has one (CartPole's steps all copies
    in one numpy expression) and steps the copies one by one where it has none.

    Raises:
        ValueError: the id is unknown or its dependency missing, or its episodes have no time limit.
        TypeError: actions are not ``Discrete`` or observations are not a flat ``Box``.

    >>> envs = make_environments("CartPole-v1", 3)
    >>> envs.reset(seed=0)[0].shape
    (3, 4)
    """
    check_positive(num_envs=num_envs)
    try:
        envs = gym.make_vec(env_id, num_envs=num_envs)
        # Gymnasium 1.0 has NEXT_STEP only and no word for it; a custom class may do otherwise.
        if getattr(envs.metadata.get("autoreset_mode"), "name", "NEXT_STEP") != "NEXT_STEP":
            envs = gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="sync")
    except (gym.error.Error, ImportError) as error:
        raise ValueError(
            f"cannot make environment {env_id!r}: {error} "
            "(gymnasium.pprint_registry() lists the ids that are there)"
        ) from error
    actions, observations = envs.single_action_space, envs.single_observation_space
    if not isinstance(actions, gym.spaces.Discrete):
        raise TypeError(f"{env_id} has actions {actions}; a categorical policy needs Discrete ones")
    if not isinstance(observations, gym.spaces.Box) or len(observations.shape) != 1:
        raise TypeError(f"{env_id} has observations {observations}; an MLP needs a flat Box")
    if envs.spec.max_episode_steps is None:
        raise ValueError(
            f"{env_id} has no time limit, so an episode may never end; "
            "register it with max_episode_steps"
        )
    return envs


@contextmanager
def one_thread():
    """Torch on one thread inside, as before outside.

    On matrices this small a second thread only waits for the first, and where other programs want
    the cores too, it waits long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Episodes(NamedTuple):
    """One whole episode of each of ``N`` environments; ``T`` is the longest one's length."""

    observations: torch.Tensor  # (T, N, D), what the policy saw
    actions: torch.Tensor  # (T, N), what it did
    rewards: torch.Tensor  # (T, N), what it got; 0 after the episode's end
    mask: torch.Tensor  # (T, N), True while the episode runs


@one_thread()
@torch.inference_mode()
def play_episodes(policy, envs, generator=None, seed=None) -> Episodes:
    """Play one episode in every environment, from reset to end.

    One episode each, never "the first K to end": those would be the short ones.

    Args:
        policy: maps observations ``(N, D)`` to logits ``(N, A)``.
        envs: what :func:`make_environments` gives.
        generator: samples the actions; ``None`` takes the likeliest action (greedy).
        seed: for the environments' reset; ``None`` goes on with their random state.
    """
    observation, _ = envs.reset(seed=seed)
    running = np.ones(envs.num_envs, dtype=bool)
    steps = []
    while running.any():
        seen = torch.as_tensor(observation, dtype=torch.float32)  # (N, D)
        logits = policy(seen)  # (N, A)
        if generator is None:
            action = logits.argmax(dim=-1)
        else:
            action = logits.softmax(dim=-1).multinomial(1, generator=generator).squeeze(-1)
        observation, reward, terminated, truncated, _ = envs.step(action.numpy())
        steps.append((seen, action, torch.as_tensor(reward * running), torch.tensor(running)))
        running = running & ~(terminated | truncated)
    return Episodes(*(torch.stack(column) for column in zip(*steps, strict=True)))


class Rollout(NamedTuple):
    """``T`` steps of ``N`` environments; the last row of observations is where they ended up."""

    observations: torch.Tensor  # (T + 1, N, D)
    actions: torch.Tensor  # (T, N)
    rewards: torch.Tensor  # (T, N)
    terminated: torch.Tensor  # (T, N), bool
    done: torch.Tensor  # (T, N), bool: terminated or truncated
    mask: torch.Tensor  # (T, N), bool: False where the step only reset an environment
    episode_returns: list[float]  # of the episodes that ended in these steps


def rollouts(policy, envs, length: int, generator, seed: int):
    """Endless rollouts of ``length`` steps, each going on where the one before stopped.

    An environment whose episode ended spends its next step on resetting (see the top of this file).
    So ``observations[t + 1]`` is always where step ``t`` truly led, the state to bootstrap from at
    a truncation, and the resetting step is masked out.
    """
    shape = (length, envs.num_envs)
    observation, _ = envs.reset(seed=seed)
    resetting = np.zeros(envs.num_envs, dtype=bool)
    running_return = np.zeros(envs.num_envs)
    while True:
        observations = torch.zeros(length + 1, *observation.shape)
        actions = torch.zeros(shape, dtype=torch.long)
        rewards = torch.zeros(shape)
        terminated, done, mask = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        episode_returns = []
        for t in range(length):
            observations[t] = torch.as_tensor(observation)
            with torch.inference_mode():
                probs = policy(observations[t]).softmax(dim=-1)
                actions[t] = probs.multinomial(1, generator=generator).squeeze(-1)
            observation, reward, ended, cut, _ = envs.step(actions[t].numpy())
            rewards[t] = torch.as_tensor(reward)
            terminated[t] = torch.as_tensor(ended)
            done[t] = torch.as_tensor(ended | cut)
            mask[t] = torch.as_tensor(~resetting)
            resetting = ended | cut
            running_return += reward
            episode_returns += running_return[resetting].tolist()
            running_return[resetting] = 0.0
        observations[length] = torch.as_tensor(observation)
        yield Rollout(observations, actions, rewards, terminated, done, mask, episode_returns)


def evaluate_policy(policy, env_id: str = "CartPole-v1", *, episodes: int = 20, seed: int):
    """Undiscounted returns of greedy episodes, shape ``(episodes,)``.

    >>> always_left = lambda observations: torch.tensor([1.0, 0.0]).expand(len(observations), 2)
    >>> bool(evaluate_policy(always_left, episodes=50, seed=0).mean() < 11)
    True
    """
    envs = make_environments(env_id, episodes)
    try:
        return play_episodes(policy, envs, seed=seed).rewards.sum(dim=0).float()
    finally:
        envs.close()


def solved(history, target_return, in_a_row: int = 3) -> bool:
    """Whether the last ``in_a_row`` greedy evaluations all reached ``target_return`` (if not None).

    One lucky check is no solution: a policy may pass and fall apart in the next update.
    """
    if target_return is None:
        return False
    checks = [row["greedy_return"] for row in history.rows if "greedy_return" in row]
    return len(checks) >= in_a_row and min(checks[-in_a_row:]) >= target_return
