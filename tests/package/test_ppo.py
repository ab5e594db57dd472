"""What PPO, its losses and its rollouts promise."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_minimal.environments import evaluate_policy, make_environments, rollouts
from rlhf_minimal.history import History
from rlhf_minimal.kl import entropy
from rlhf_minimal.ppo import (
    approximate_kl,
    clip_fraction,
    clipped_policy_loss,
    explained_variance,
    gae,
    train_ppo,
    value_loss,
)


def random_rollout(seed, length=9, shape=(3,)):
    """Rewards, values, next values, terminated, done in float64, with both kinds of ending."""
    g = torch.Generator().manual_seed(seed)
    rewards, values, next_values = (
        torch.randn(length, *shape, generator=g, dtype=torch.float64) for _ in range(3)
    )
    done = torch.rand(length, *shape, generator=g) < 0.3
    terminated = done & (torch.rand(length, *shape, generator=g) < 0.5)
    return rewards, values, next_values, terminated, done


# --- advantages ---------------------------------------------------------------------------------


def test_gae_of_a_hand_worked_rollout_tells_truncation_from_termination():
    # gamma = lam = 0.5. The clock cuts step 1, the pole falls at step 3.
    # δ = 1 + 0.5·V' − V, without V' at step 3:
    # δ_0 = 1 + 2 − 2 = 1; δ_1 = 1 + 3 − 4 = 0; δ_2 = 1 + 1 − 1 = 1; δ_3 = 1 − 2 = −1
    # A_3 = −1; A_2 = 1 + 0.25·(−1) = 0.75; A_1 = 0 (cut); A_0 = 1 + 0.25·0 = 1
    advantages = gae(
        rewards=torch.ones(4),
        values=torch.tensor([2.0, 4.0, 1.0, 2.0]),
        next_values=torch.tensor([4.0, 6.0, 2.0, 8.0]),
        terminated=torch.tensor([0.0, 0.0, 0.0, 1.0]),
        done=torch.tensor([0.0, 1.0, 0.0, 1.0]),
        gamma=0.5,
        lam=0.5,
    )
    assert advantages.tolist() == [1.0, 0.0, 0.75, -1.0]


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_gae_is_the_double_sum_of_td_errors(seed, gamma, lam):
    rewards, values, next_values, terminated, done = random_rollout(seed)
    advantages = gae(rewards, values, next_values, terminated, done, gamma, lam)
    for i in range(3):
        for t in range(9):
            total = 0.0
            for k in range(t, 9):
                future = 0.0 if terminated[k, i] else next_values[k, i].item()
                delta = rewards[k, i].item() + gamma * future - values[k, i].item()
                total += (gamma * lam) ** (k - t) * delta
                if done[k, i]:
                    break
            assert advantages[t, i].item() == pytest.approx(total, rel=1e-10, abs=1e-10)


def test_lambda_zero_is_the_td_error():
    rewards, values, next_values, terminated, done = random_rollout(1)
    advantages = gae(rewards, values, next_values, terminated, done, 0.9, 0.0)
    td_error = rewards + 0.9 * next_values * ~terminated - values
    torch.testing.assert_close(advantages, td_error, rtol=1e-12, atol=1e-12)


def test_lambda_one_is_the_return_less_the_value():
    rewards, values, next_values, _, _ = random_rollout(2, shape=())
    done = torch.tensor([False] * 8 + [True])
    next_values[:-1] = values[1:]  # consistent values, so that the sum telescopes
    advantages = gae(rewards, values, next_values, done, done, 0.9, 1.0)
    for t in range(9):
        discounted = sum(0.9 ** (k - t) * rewards[k] for k in range(t, 9))
        torch.testing.assert_close(advantages[t], discounted - values[t], rtol=1e-12, atol=1e-12)


def test_the_value_after_termination_is_never_read():
    rewards, values, next_values, terminated, done = random_rollout(3)
    expected = gae(rewards, values, next_values, terminated, done, 0.9, 0.9)
    next_values[terminated] = float("nan")
    assert torch.equal(gae(rewards, values, next_values, terminated, done, 0.9, 0.9), expected)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_gae_takes_any_shape_after_time_and_0_1_for_booleans(shape):
    rewards, values, next_values, terminated, done = random_rollout(4, shape=shape)
    as_bool = gae(rewards, values, next_values, terminated, done, 0.9, 0.9)
    as_float = gae(rewards, values, next_values, terminated.double(), done.double(), 0.9, 0.9)
    assert as_bool.shape == rewards.shape and torch.equal(as_bool, as_float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"lam": -0.1}, "lam is -0.1"),
        ({"values": torch.zeros(4)}, r"values has shape \(4,\)"),
        ({"rewards": torch.tensor([0.0, float("nan"), 0.0])}, r"rewards\[1\] is nan"),
        ({"done": torch.zeros(3)}, "terminated but not done"),
        ({"next_values": torch.tensor([float("inf"), 0.0, 0.0])}, r"next_values\[0\] is inf"),
    ],
)
def test_gae_refuses_what_cannot_be_right(change, message):
    arguments = {name: torch.zeros(3) for name in ("rewards", "values", "next_values")}
    last = torch.tensor([0.0, 0.0, 1.0])
    arguments |= {"terminated": last, "done": last, "gamma": 0.9, "lam": 0.9}
    with pytest.raises(ValueError, match=message):
        gae(**(arguments | change))


# --- losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "has_gradient"),
    [
        (1.1, 1.0, 1.1, True),
        (1.5, 1.0, 1.2, False),  # far enough: the ratio is clipped
        (0.5, 1.0, 0.5, True),  # went the wrong way: free to come back
        (0.9, -1.0, -0.9, True),
        (0.5, -1.0, -0.8, False),
        (1.5, -1.0, -1.5, True),
    ],
)
def test_the_clip_stops_the_gradient_only_where_the_ratio_went_far_enough(
    ratio, advantage, surrogate, has_gradient
):
    log_probs = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([advantage], dtype=torch.float64)
    loss = clipped_policy_loss(log_probs, torch.zeros(1, dtype=torch.float64), advantages)
    loss.backward()
    assert loss.item() == pytest.approx(-surrogate, rel=1e-12)
    # inside, d(−ρA)/d log π = −ρA
    expected = -ratio * advantage if has_gradient else 0.0
    assert log_probs.grad.item() == pytest.approx(expected, rel=1e-12)


def test_clip_range_is_the_argument():
    loss = clipped_policy_loss(torch.tensor([2.0]).log(), torch.zeros(1), torch.ones(1), clip=0.5)
    assert loss.item() == pytest.approx(-1.5)


def test_at_the_old_policy_the_gradient_is_the_policy_gradient():
    log_probs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([3.0, -6.0, 9.0])
    clipped_policy_loss(log_probs, log_probs.detach(), advantages).backward()
    assert log_probs.grad.tolist() == [-1.0, 2.0, -3.0]


def test_policy_and_value_loss_have_the_gradients_of_finite_differences():
    g = torch.Generator().manual_seed(0)
    x, old, weights = (torch.randn(4, 5, generator=g, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(4, 5, generator=g) < 0.6
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_policy_loss(x, old, weights, 0.2, mask), x)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, weights, mask), x)
    assert torch.autograd.gradcheck(entropy, x)


def test_only_the_trained_side_gets_a_gradient_from_advantages_and_returns():
    x, weights = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    (clipped_policy_loss(x, x.detach(), weights) + value_loss(x, weights)).backward()
    assert x.grad is not None and weights.grad is None


def test_value_loss_is_the_mean_square_without_a_half():
    values, returns = torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[0.0, 4.0], [3.0, 0.0]])
    assert value_loss(values, returns).item() == (1 + 4 + 0 + 81) / 4
    mask = torch.tensor([[1, 1], [1, 0]])
    assert value_loss(values, returns, mask).item() == pytest.approx(5 / 3)


LOSSES = {
    "policy": lambda x, y, mask: clipped_policy_loss(x, y, y.exp(), mask=mask),
    "value": value_loss,
    "kl": approximate_kl,
    "clip fraction": lambda x, y, mask: clip_fraction(x, y, mask=mask),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_what_is_masked_out_counts_neither_in_the_value_nor_in_the_gradient(name, rubbish):
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(3, 6, generator=g), torch.randn(3, 6, generator=g)
    mask = torch.arange(6) < torch.tensor([[2], [6], [1]])
    kept_x, kept_y = x[mask].clone().requires_grad_(), y[mask]
    expected = LOSSES[name](kept_x, kept_y, None)
    x[~mask] = rubbish
    y[~mask] = rubbish
    x.requires_grad_()
    loss = LOSSES[name](x, y, mask.float())
    # the same terms added in another order: a few float32 ulps
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    if loss.requires_grad:
        loss.backward()
        expected.backward()
        torch.testing.assert_close(x.grad[mask], kept_x.grad, rtol=1e-6, atol=1e-7)
        assert (x.grad[~mask] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_bad_shapes_empty_batches_and_empty_masks_are_refused(name):
    with pytest.raises(ValueError, match="has shape"):
        LOSSES[name](torch.zeros(3), torch.zeros(4), None)
    with pytest.raises(ValueError, match="empty"):
        LOSSES[name](torch.zeros(0), torch.zeros(0), None)
    with pytest.raises(ValueError, match="no token"):
        LOSSES[name](torch.zeros(3), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="mask has shape"):
        LOSSES[name](torch.zeros(3), torch.zeros(3), torch.ones(4))


def test_a_clip_range_of_zero_is_refused():
    with pytest.raises(ValueError, match="clip is 0"):
        clipped_policy_loss(torch.zeros(2), torch.zeros(2), torch.ones(2), clip=0)


# --- what is watched ----------------------------------------------------------------------------


def test_entropy_of_uniform_certain_and_forbidden_actions():
    logits = torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0], [1.0, 1.0, -math.inf]])
    values = entropy(logits.double())
    expected = torch.tensor([math.log(3), 0.0, math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)


def test_entropy_has_a_gradient_beside_a_forbidden_action():
    logits = torch.tensor([1.0, 0.0, -math.inf], requires_grad=True)
    entropy(logits).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[0] < 0 < logits.grad[1]


def test_clip_fraction_counts_both_sides():
    ratios = torch.tensor([0.7, 0.85, 1.0, 1.15, 1.3, 1.4, 0.1, 1.19])
    assert clip_fraction(ratios.log(), torch.zeros(8)).item() == 0.5
    assert clip_fraction(ratios.log(), torch.zeros(8), clip=0.35).item() == 0.25


def test_approximate_kl_is_unbiased_for_the_kl_from_the_old_policy():
    old = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    new = torch.tensor([0.1, 0.4, 0.5], dtype=torch.float64)
    # every action as often as the old policy takes it: the estimate's expectation, exactly
    actions = torch.tensor([0] * 2 + [1] * 5 + [2] * 3)
    estimate = approximate_kl(new.log()[actions], old.log()[actions])
    assert estimate.item() == pytest.approx(0.0969535, abs=5e-8)  # the literature's KL(old‖new)


def test_what_is_watched_carries_no_gradient():
    x = torch.randn(4, requires_grad=True)
    assert not approximate_kl(x, torch.zeros(4)).requires_grad
    assert not clip_fraction(x, torch.zeros(4)).requires_grad


def test_explained_variance_of_perfect_constant_and_harmful_critics():
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns + 5, returns).item() == 1.0  # an offset is no variance
    assert explained_variance(torch.zeros(3), returns).item() == 0.0
    assert explained_variance(-returns, returns).item() == -3.0
    assert math.isnan(explained_variance(returns, torch.ones(3)).item())


# --- rollouts -----------------------------------------------------------------------------------


class ShortClock(gym.Env):
    """Counts its steps; action 1 ends the episode, and the clock cuts it after four steps."""

    observation_space = gym.spaces.Box(0.0, 100.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, dtype=np.float32), 1.0, bool(action), False, {}


@pytest.fixture
def short_clock():
    gym.register("ShortClock-v0", ShortClock, max_episode_steps=4)
    yield "ShortClock-v0"
    gym.registry.pop("ShortClock-v0")


def test_rollouts_hold_only_true_transitions(short_clock):
    envs = make_environments(short_clock, 5)
    policy = lambda observations: torch.tensor([1.0, 0.0]).expand(len(observations), 2)  # noqa: E731
    stream = rollouts(policy, envs, 7, torch.Generator().manual_seed(0), seed=0)
    # 7 steps do not divide into episodes, so resets fall on the edges between rollouts too
    total, ended = 0, 0
    for _ in range(6):
        rollout = next(stream)
        before, after = rollout.observations[:-1, :, 0], rollout.observations[1:, :, 0]
        keep = rollout.mask
        assert torch.equal(after[keep], before[keep] + 1)  # also at the episode's last step
        assert (after[~keep] == 0).all() and (rollout.rewards[~keep] == 0).all()
        assert (rollout.rewards[keep] == 1).all() and not rollout.done[~keep].any()
        assert torch.equal(rollout.terminated[keep], rollout.actions[keep] == 1)
        cut = rollout.done & ~rollout.terminated
        assert torch.equal(cut[keep], (after == 4)[keep] & ~rollout.terminated[keep])
        assert cut.any() and rollout.terminated.any()
        total += int(rollout.rewards.sum())
        ended += sum(rollout.episode_returns)
    # what is not in a finished episode is in the five running ones
    assert ended <= total < ended + 5 * 4


def test_cartpole_rollouts_are_those_of_single_environments():
    envs = make_environments("CartPole-v1", 3)
    policy = lambda observations: torch.zeros(len(observations), 2)  # noqa: E731
    stream = rollouts(policy, envs, 40, torch.Generator().manual_seed(0), seed=0)
    single = gym.make("CartPole-v1")
    checked = 0
    for rollout in (next(stream), next(stream)):
        for t, i in rollout.mask.nonzero().tolist():
            # each stored step again, from its own stored state
            single.reset()
            single.unwrapped.state = rollout.observations[t, i].double().numpy()
            observation, reward, terminated, _, _ = single.step(int(rollout.actions[t, i]))
            np.testing.assert_allclose(observation, rollout.observations[t + 1, i], atol=1e-5)
            assert reward == rollout.rewards[t, i] and terminated == bool(rollout.terminated[t, i])
            checked += 1
        assert (rollout.observations[1:][~rollout.mask].abs() <= 0.05).all()  # a fresh start
    assert checked > 200 and rollout.terminated.any()


# --- training -----------------------------------------------------------------------------------


def test_one_seed_one_run():
    def run(seed):
        torch.rand(1)  # the global random state must not matter
        policy, history = train_ppo(
            seed=seed, max_steps=2500, evaluate_every=1000, show_progress=False
        )
        return history.rows, torch.nn.utils.parameters_to_vector(policy.parameters())

    (rows, weights), (again, weights_again) = run(4), run(4)
    assert rows == again and torch.equal(weights, weights_again)
    assert not torch.equal(weights, run(5)[1])


def test_training_uses_the_functions_it_is_given():
    used = set()

    def watched(name, function):
        def wrapper(*args):
            used.add(name)
            return function(*args)

        return wrapper

    own = {"policy_loss": clipped_policy_loss, "value_loss": value_loss, "advantages": gae}
    given_functions = {name: watched(name, function) for name, function in own.items()}
    _, history = train_ppo(seed=0, max_steps=1500, show_progress=False, **given_functions)
    assert used == set(own)
    # resetting steps are not counted, so 8 × 128 steps a rollout is a ceiling
    assert len(history) == 2 and 1500 <= history["steps"][-1] < 2 * 8 * 128


def test_target_kl_ends_an_update_early():
    def last_kl(target_kl):
        _, history = train_ppo(
            seed=0, max_steps=1, learning_rate=0.01, target_kl=target_kl, show_progress=False
        )
        return history["approximate_kl"][0]

    assert last_kl(1e-6) < last_kl(None)


@pytest.mark.parametrize("name", ["max_steps", "num_envs", "rollout_length", "epochs"])
def test_settings_that_cannot_train_are_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        train_ppo(**{"seed": 0, "max_steps": 10, "show_progress": False, name: 0})


@pytest.mark.parametrize(
    ("env_id", "error"),
    [("NoSuchPole-v1", ValueError), ("Pendulum-v1", TypeError), ("FrozenLake-v1", TypeError)],
)
def test_environments_that_do_not_fit_are_named(env_id, error):
    with pytest.raises(error, match=env_id):
        train_ppo(env_id, seed=0, max_steps=10, show_progress=False)


def test_ctrl_c_leaves_a_readable_history(tmp_path):
    calls = []

    def interrupted_advantages(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return gae(*args)

    with pytest.raises(KeyboardInterrupt):
        train_ppo(
            seed=0,
            max_steps=10_000,
            advantages=interrupted_advantages,
            history=History(tmp_path / "history.json"),
            show_progress=False,
        )
    saved = History.load(tmp_path / "history.json")
    assert saved.interrupted and len(saved) == 2


def test_ppo_solves_cartpole():
    policy, history = train_ppo(seed=1, max_steps=60_000, target_return=475, show_progress=False)
    assert history["steps"][-1] < 60_000
    assert evaluate_policy(policy, episodes=20, seed=12345).mean() >= 475
