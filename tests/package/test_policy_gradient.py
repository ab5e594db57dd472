"""What REINFORCE and its helpers promise."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_minimal.environments import (
    evaluate_policy,
    make_environments,
    one_thread,
    play_episodes,
    solved,
)
from rlhf_minimal.history import History
from rlhf_minimal.policy_gradient import (
    Policy,
    action_log_probs,
    discounted_returns,
    no_baseline,
    normalise,
    policy_gradient_loss,
    subtract_mean,
    train_reinforce,
)

numbers = st.floats(-100, 100, width=32)


# --- returns ------------------------------------------------------------------------------------


def test_returns_of_a_hand_worked_episode():
    # G_2 = 4, G_1 = 2 + 0.9 * 4 = 5.6, G_0 = 1 + 0.9 * 5.6 = 6.04
    returns = discounted_returns(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), gamma=0.9)
    expected = torch.tensor([6.04, 5.6, 4.0], dtype=torch.float64)
    torch.testing.assert_close(returns, expected, rtol=1e-14, atol=0)


@given(st.lists(numbers, min_size=1, max_size=30), st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_returns_are_the_double_sum(rewards, gamma):
    returns = discounted_returns(torch.tensor(rewards, dtype=torch.float64), gamma)
    for t in range(len(rewards)):
        naive = sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards)))
        assert returns[t].item() == pytest.approx(naive, rel=1e-10, abs=1e-10)


def test_returns_at_the_ends_of_gamma():
    rewards = torch.tensor([3.0, -1.0, 2.0])
    assert discounted_returns(rewards, 0.0).tolist() == [3.0, -1.0, 2.0]
    assert discounted_returns(rewards, 1.0).tolist() == [4.0, 1.0, 2.0]


def test_returns_leave_the_rewards_alone_and_keep_their_type():
    rewards = torch.ones(3, dtype=torch.float64)
    assert discounted_returns(rewards, 0.5).dtype == torch.float64
    assert rewards.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_outside_its_range_is_named(gamma):
    with pytest.raises(ValueError, match="gamma is"):
        discounted_returns(torch.ones(2), gamma)


@pytest.mark.parametrize(
    ("rewards", "error", "message"),
    [
        (torch.zeros(0), ValueError, "empty"),
        (torch.zeros(2, 3), ValueError, r"\(2, 3\)"),
        (torch.tensor([1.0, float("nan")]), ValueError, r"rewards\[1\] is nan"),
        ([1.0, 2.0], TypeError, "torch.Tensor"),
    ],
)
def test_rewards_that_cannot_be_discounted_are_refused(rewards, error, message):
    with pytest.raises(error, match=message):
        discounted_returns(rewards, 0.9)


# --- baselines ----------------------------------------------------------------------------------


def test_normalise_one_step_is_zero_not_nan():
    assert normalise(torch.tensor([5.0])).tolist() == [0.0]


@given(st.floats(-10000, 10000, width=32), st.integers(1, 300))
@settings(deadline=None, max_examples=60)
def test_normalise_equal_returns_gives_no_preference(value, count):
    # a float32 mean is off by an ulp; divided by a tiny deviation, that would look like a signal
    assert normalise(torch.full((count,), value)).abs().max() < 1e-2


def test_normalise_has_zero_mean_and_unit_population_deviation():
    values = normalise(torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64))
    assert values.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert values.std(correction=0).item() == pytest.approx(1.0, abs=1e-7)


# --- the loss -----------------------------------------------------------------------------------


def test_loss_is_minus_the_mean_of_products():
    loss = policy_gradient_loss(torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([3.0, -1.0, 2.0]))
    assert loss.item() == pytest.approx(-(-3.0 + 2.0 - 1.0) / 3)


def test_no_gradient_flows_into_the_weights():
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    weights = torch.tensor([3.0, 1.0], requires_grad=True)
    policy_gradient_loss(log_probs, weights).backward()
    assert log_probs.grad.tolist() == [-1.5, -0.5]
    assert weights.grad is None


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="log_probs has shape"):
        policy_gradient_loss(torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="empty"):
        policy_gradient_loss(torch.zeros(0), torch.zeros(0))


# A bandit of three arms: J(θ) = Σ softmax(θ)_a r_a, so ∂J/∂θ_a = π_a (r_a − J).
LOGITS = torch.tensor([0.3, -0.2, 0.8], dtype=torch.float64)
ARMS = torch.tensor([5.0, 6.0, 8.0], dtype=torch.float64)


def bandit_gradients(baseline: float, batches: int = 4000, size: int = 10):
    """Gradient of the loss for each of many small batches, ``(batches, 3)``."""
    generator = torch.Generator().manual_seed(0)
    logits = LOGITS.expand(batches, 3).clone().requires_grad_()
    actions = LOGITS.softmax(0).multinomial(batches * size, True, generator=generator)
    log_probs = action_log_probs(logits.repeat_interleave(size, dim=0), actions)
    # one loss over all batches; each batch's own mean has `batches` times its weight in it
    (batches * policy_gradient_loss(log_probs, ARMS[actions] - baseline)).backward()
    return logits.grad


@pytest.mark.parametrize("baseline", [0.0, 7.0])
def test_expected_gradient_is_the_exact_one_with_and_without_baseline(baseline):
    pi = LOGITS.softmax(0)
    exact = -pi * (ARMS - pi @ ARMS)
    gradients = bandit_gradients(baseline)
    error = gradients.std(dim=0) / len(gradients) ** 0.5
    # four standard errors: a right estimator fails one seed in five thousand, and the seed is fixed
    assert ((gradients.mean(dim=0) - exact).abs() < 4 * error).all()
    assert (exact.abs() > 8 * error).any()  # so that a gradient of zero could not pass


def test_a_baseline_lowers_the_variance():
    without, with_baseline = bandit_gradients(0.0).var(dim=0), bandit_gradients(7.0).var(dim=0)
    assert (with_baseline < 0.1 * without).all()  # closed form: 0.02 to 0.04 for these arms


def test_subtract_mean_shrinks_the_bandit_gradient_by_one_over_n():
    generator = torch.Generator().manual_seed(1)
    size, draws = 4, 60_000
    pi = LOGITS.softmax(0)
    actions = pi.multinomial(size * draws, True, generator=generator).view(draws, size)
    weights = ARMS[actions] - ARMS[actions].mean(dim=1, keepdim=True)
    assert torch.equal(subtract_mean(ARMS[actions[0]]), weights[0])
    score = torch.eye(3, dtype=torch.float64)[actions] - pi  # ∇log π, (draws, size, 3)
    gradients = -(score * weights[..., None]).mean(dim=1)
    exact = -pi * (ARMS - pi @ ARMS) * (1 - 1 / size)
    error = gradients.std(dim=0) / draws**0.5
    assert ((gradients.mean(dim=0) - exact).abs() < 4 * error).all()


# --- environments -------------------------------------------------------------------------------


def tipping_policy(observations):
    """Push to where the pole leans: episodes of 24 to 70 steps."""
    lean = observations[:, 2]
    return torch.stack([-lean, lean], dim=1)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0"])
def test_episodes_are_those_of_a_single_environment(env_id):
    # MountainCar has no vectorised form of its own, so its copies are stepped one by one; its
    # episodes end by the clock, CartPole's by a fall.
    envs = make_environments(env_id, 4)
    generator = torch.Generator().manual_seed(0)
    policy = Policy(envs.single_observation_space.shape[0], int(envs.single_action_space.n))
    episodes = play_episodes(policy, envs, generator, seed=3)
    for i in range(4):
        length = int(episodes.mask[:, i].sum())
        assert episodes.mask[:length, i].all()  # no gap
        single = gym.make(env_id)
        single.reset(seed=0)
        replay(single, episodes, i, length)


def replay(single, episodes, i, length):
    """The stored actions, played from the stored first state, give the stored states and end."""
    if single.spec.id == "CartPole-v1":
        single.unwrapped.state = episodes.observations[0, i].double().numpy()
        tolerance = 1e-3  # the first state was stored in float32; the pole is unstable
    else:
        single.reset(seed=3 + i)  # one by one: environment i has seed 3 + i
        tolerance = 0.0
    for t in range(length):
        observation, reward, terminated, truncated, _ = single.step(int(episodes.actions[t, i]))
        assert reward == episodes.rewards[t, i].item()
        assert (terminated or truncated) == (t == length - 1)
        if t < length - 1:
            np.testing.assert_allclose(
                observation, episodes.observations[t + 1, i], rtol=0, atol=tolerance
            )
    assert (episodes.rewards[length:, i] == 0).all()


def test_greedy_evaluation_agrees_with_single_environments():
    returns = evaluate_policy(tipping_policy, episodes=100, seed=0)
    single = gym.make("CartPole-v1")
    lengths = []
    for episode in range(100):
        observation, _ = single.reset(seed=episode)
        done, total = False, 0.0
        while not done:
            action = int(tipping_policy(torch.as_tensor(observation)[None]).argmax())
            observation, reward, terminated, truncated, _ = single.step(action)
            done, total = terminated or truncated, total + reward
        lengths.append(total)
    lengths = torch.tensor(lengths)
    error = ((returns.var() + lengths.var()) / 100).sqrt()
    assert error < 0.05 * lengths.mean()  # sharp enough to see one step too many in twenty
    assert (returns.mean() - lengths.mean()).abs() < 4 * error


@pytest.mark.parametrize(
    ("env_id", "error", "message"),
    [
        ("NoSuchPole-v1", ValueError, "NoSuchPole-v1.*pprint_registry"),
        ("Pendulum-v1", TypeError, "Pendulum-v1 has actions Box.*Discrete"),
        ("FrozenLake-v1", TypeError, "FrozenLake-v1 has observations Discrete"),
    ],
)
def test_environments_that_do_not_fit_are_refused_with_a_reason(env_id, error, message):
    with pytest.raises(error, match=message):
        train_reinforce(env_id, seed=0, max_steps=10, show_progress=False)


def test_solved_wants_three_in_a_row():
    history = History()
    for value in (500.0, 500.0, 100.0, 480.0, 490.0):
        history.record(greedy_return=value)
    assert not solved(history, 475)
    history.record(loss=0.0)
    history.record(greedy_return=475.0)
    assert solved(history, 475) and not solved(history, 476) and not solved(history, None)


def test_one_thread_is_undone_after_an_error():
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError), one_thread():
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == threads


# --- training -----------------------------------------------------------------------------------


def test_one_seed_one_run():
    def run(seed):
        torch.rand(1)  # the global random state must not matter
        policy, history = train_reinforce(
            seed=seed, max_steps=3000, evaluate_every=1000, show_progress=False
        )
        return history.rows, torch.nn.utils.parameters_to_vector(policy.parameters())

    (rows, weights), (again, weights_again) = run(4), run(4)
    assert rows == again and torch.equal(weights, weights_again)
    assert not torch.equal(weights, run(5)[1])


def test_training_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    train_reinforce(seed=0, max_steps=100, show_progress=False)
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_uses_the_functions_it_is_given():
    calls = {"returns": 0, "baseline": 0, "loss": 0}

    def counted(name, function):
        def wrapper(*args):
            calls[name] += 1
            return function(*args)

        return wrapper

    _, history = train_reinforce(
        seed=0,
        max_steps=500,
        num_envs=3,
        returns=counted("returns", discounted_returns),
        baseline=counted("baseline", no_baseline),
        loss=counted("loss", policy_gradient_loss),
        show_progress=False,
    )
    updates = len(history)
    assert calls == {"returns": 3 * updates, "baseline": updates, "loss": updates}
    assert history["steps"][-1] >= 500 > history["steps"][-2]


@pytest.mark.parametrize("name", ["max_steps", "num_envs", "learning_rate", "evaluate_every"])
def test_settings_that_cannot_train_are_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        train_reinforce(**{"seed": 0, "max_steps": 10, "show_progress": False, name: 0})


def test_ctrl_c_leaves_a_readable_history(tmp_path):
    calls = []

    def interrupted_loss(log_probs, weights):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return policy_gradient_loss(log_probs, weights)

    with pytest.raises(KeyboardInterrupt):
        train_reinforce(
            seed=0,
            max_steps=10_000,
            loss=interrupted_loss,
            history=History(tmp_path / "history.json", seed=0),
            show_progress=False,
        )
    saved = History.load(tmp_path / "history.json")
    assert saved.interrupted and len(saved) == 3 and saved.facts == {"seed": 0}


def test_reinforce_solves_cartpole():
    policy, history = train_reinforce(
        seed=0, max_steps=150_000, target_return=475, show_progress=False
    )
    assert history["steps"][-1] < 150_000
    assert evaluate_policy(policy, episodes=20, seed=12345).mean() >= 475
