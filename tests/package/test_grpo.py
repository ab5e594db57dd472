"""What RLOO and GRPO promise."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_model
from tiny_task import (
    END,
    PROMPTS,
    SAMPLING,
    count_good,
    same_weights,
    tiny_policy,
    true_reward_and_kl,
)

from rlhf_minimal.grpo import (
    group_relative_advantages,
    grpo_loss,
    rloo_advantages,
    rloo_loss,
    train_grpo,
    train_rloo,
)
from rlhf_minimal.history import History

ADVANTAGES = [rloo_advantages, group_relative_advantages]
TRAINERS = [train_grpo, train_rloo]
many = settings(deadline=None, derandomize=True, max_examples=60)
groups = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-50, 50), min_size=size, max_size=size), min_size=1, max_size=4
    )
)


def random_tokens(seed, rows=3, length=5):
    """Three tables of log-probabilities near each other, advantages and a mask."""
    generator = torch.Generator().manual_seed(seed)

    def noise(scale, *shape):
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = -2 + noise(0.3, rows, length)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 0, 1, 0, 0]])[:rows, :length]
    return old + noise(0.3, rows, length), old, old + noise(0.3, rows, length), noise(1, rows), mask


# --- advantages ---------------------------------------------------------------------------------


def test_rloo_by_hand():
    # Each less the mean of the other two: 1 − 4, 2 − 3.5, 6 − 1.5
    assert rloo_advantages(torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [[-3.0, -1.5, 4.5]]


def test_grpo_by_hand():
    # Mean 3, deviations −2, −1, 3; sample deviation √(14/2) = 2.6457513
    advantages = group_relative_advantages(torch.tensor([[1.0, 2.0, 6.0]]), eps=0.0)
    by_hand = torch.tensor([[-2.0, -1.0, 3.0]]) / 2.6457513
    torch.testing.assert_close(advantages, by_hand)


def test_without_the_deviation_grpo_only_centres():
    advantages = group_relative_advantages(
        torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]), normalize_by_std=False
    )
    assert advantages.tolist() == [[-2.0, -1.0, 3.0], [-1.0, -1.0, 2.0]]


@given(groups)
@many
def test_advantages_equal_loops_over_groups(rows):
    rewards = torch.tensor(rows, dtype=torch.float64)
    rloo, grpo = rloo_advantages(rewards), group_relative_advantages(rewards, eps=0.01)
    for i, row in enumerate(rows):
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((r - mean) ** 2 for r in row) / (len(row) - 1))
        for j, reward in enumerate(row):
            others = row[:j] + row[j + 1 :]
            expected = reward - sum(others) / len(others)
            assert rloo[i, j].item() == pytest.approx(expected, rel=1e-11, abs=1e-11)
            expected = (reward - mean) / (deviation + 0.01)
            assert grpo[i, j].item() == pytest.approx(expected, rel=1e-9, abs=1e-10)


@given(groups, st.floats(-100, 100))
@many
def test_advantages_sum_to_0_and_ignore_what_all_answers_share(rows, bonus):
    rewards = torch.tensor(rows, dtype=torch.float64)
    for advantages in (rloo_advantages, lambda r: group_relative_advantages(r, eps=0.01)):
        found = advantages(rewards)
        assert found.sum(-1).abs().max() < 1e-9
        torch.testing.assert_close(advantages(rewards + bonus), found, rtol=1e-9, atol=1e-9)


def test_rloo_is_grpo_without_the_deviation_times_g_over_g_less_1():
    rewards = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = group_relative_advantages(rewards, normalize_by_std=False)
    torch.testing.assert_close(rloo_advantages(rewards), centred * 4 / 3)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1000.1, -3e4 / 7])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_a_group_of_equal_rewards_has_advantages_of_exactly_zero(reward, size):
    rewards = torch.full((1, size), reward)
    assert group_relative_advantages(rewards).tolist() == [[0.0] * size]


def test_every_group_s_advantages_have_a_deviation_of_one():
    rewards = torch.tensor([[0.0, 1.0, 5.0], [0.0, 0.01, 0.05]])
    deviations = group_relative_advantages(rewards).std(-1)
    torch.testing.assert_close(deviations, torch.ones(2), rtol=1e-4, atol=0)  # eps: 4e-5 of 0.026


@pytest.mark.parametrize("advantages", ADVANTAGES)
@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([[1.0], [2.0]], r"shape \(2, 1\); they must be \(B, G\)"),
        ([1.0, 2.0], r"shape \(2,\)"),
        ([[1.0, math.nan]], r"rewards\[0, 1\] is nan"),
        ([[1.0, math.inf]], r"rewards\[0, 1\] is inf"),
        ([[]], "rewards is empty"),
    ],
)
def test_rewards_that_cannot_be_compared_are_refused(advantages, rewards, message):
    with pytest.raises(ValueError, match=message):
        advantages(torch.tensor(rewards))


@pytest.mark.parametrize("advantages", ADVANTAGES)
def test_rewards_are_not_changed_in_place(advantages):
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    advantages(rewards)
    assert rewards.tolist() == [[1.0, 2.0, 6.0]]


# --- losses -------------------------------------------------------------------------------------


def test_grpo_loss_equals_a_loop_over_tokens():
    log_probs, old, ref, advantages, mask = random_tokens(0)
    total, count, clipped = 0.0, 0, 0
    for b in range(3):
        for t in range(5):
            if not mask[b, t]:
                continue
            ratio = math.exp(log_probs[b, t] - old[b, t])
            cut = min(max(ratio, 0.8), 1.2)
            clipped += cut != ratio
            surrogate = min(ratio * advantages[b].item(), cut * advantages[b].item())
            gap = (log_probs[b, t] - ref[b, t]).item()
            total += -surrogate + 0.5 * (math.exp(-gap) - 1 + gap)
            count += 1
    assert clipped >= 2
    loss = grpo_loss(log_probs, old, ref, advantages, mask, beta=0.5, clip=0.2)
    assert loss.item() == pytest.approx(total / count, rel=1e-12)


def test_rloo_loss_by_hand():
    log_probs = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -0.5, -1.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    # −(2·(−3) + (−1)·(−2))/2
    assert rloo_loss(log_probs, torch.tensor([2.0, -1.0]), mask).item() == 2.0


def test_gradients_of_both_losses_are_right():
    log_probs, old, ref, advantages, mask = random_tokens(1)
    log_probs.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: grpo_loss(x, old, ref, advantages, mask, beta=0.5), (log_probs,)
    )
    assert torch.autograd.gradcheck(lambda x: rloo_loss(x, advantages, mask), (log_probs,))


def test_on_fresh_samples_grpo_s_gradient_is_the_policy_gradient():
    log_probs, _, _, advantages, mask = random_tokens(2)
    log_probs.requires_grad_()
    same = log_probs.detach()
    grpo_loss(log_probs, same, same, advantages, mask, beta=0.7).backward()
    # At the reference k3 and its gradient are 0; a token's gradient is −A/(number of tokens).
    torch.testing.assert_close(log_probs.grad, -advantages[:, None] * mask / mask.sum())


def test_the_price_of_kl_pulls_towards_the_reference():
    log_probs = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    reference = torch.tensor([[-2.0, -2.0]])
    still = torch.zeros(1)
    mask = torch.ones(1, 2)
    grpo_loss(log_probs, log_probs.detach(), reference, still, mask, beta=1.0).backward()
    # d k3/d log π = 1 − e^(−l): positive (descent lowers log π) where π is above π_ref
    expected = torch.tensor([[1 - math.exp(-1), 1 - math.exp(1)]]) / 2
    torch.testing.assert_close(log_probs.grad, expected)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e4, 1e4])
def test_padding_enters_neither_losses_nor_gradients(junk):
    log_probs, old, ref, advantages, mask = random_tokens(3)
    results = []
    for spoil in (False, True):
        rows = [x.masked_fill(mask == 0, junk) if spoil else x for x in (log_probs, old, ref)]
        new = rows[0].clone().requires_grad_()
        loss = grpo_loss(new, *rows[1:], advantages, mask) + rloo_loss(new, advantages, mask)
        loss.backward()
        results.append((loss, new.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_no_gradient_goes_to_advantages():
    log_probs, old, ref, advantages, mask = random_tokens(4)
    log_probs.requires_grad_()
    advantages.requires_grad_()
    loss = grpo_loss(log_probs, old, ref, advantages, mask)
    (loss + rloo_loss(log_probs, advantages, mask)).backward()
    assert advantages.grad is None and log_probs.grad.abs().sum() > 0


@pytest.mark.parametrize("advantages", [(1,), (3, 1), (2,)])
def test_advantages_that_would_broadcast_are_refused(advantages):
    log_probs, old, ref, _, mask = random_tokens(5)
    with pytest.raises(ValueError, match="advantages has shape"):
        grpo_loss(log_probs, old, ref, torch.zeros(advantages), mask)
    with pytest.raises(ValueError, match="advantages has shape"):
        rloo_loss(log_probs, torch.zeros(advantages), mask)


def test_answers_without_a_token_are_refused():
    log_probs, old, ref, advantages, mask = random_tokens(6)
    with pytest.raises(ValueError, match="mask counts no token"):
        grpo_loss(log_probs, old, ref, advantages, 0 * mask)
    with pytest.raises(ValueError, match="mask counts no token"):
        rloo_loss(log_probs, advantages, 0 * mask)


def test_a_negative_price_of_kl_is_refused():
    with pytest.raises(ValueError, match=r"beta is -0\.1"):
        grpo_loss(*random_tokens(7), beta=-0.1)


# --- training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    return tiny_policy()


def trained(train, reference, score=count_good, policy=None, prompts=PROMPTS, **options):
    policy = policy or copy.deepcopy(reference)
    options = dict(steps=20, lr=1e-2, schedule="constant", prompts_a_step=6) | SAMPLING | options
    options = dict(show_progress=False) | options
    return policy, train(policy, reference, score, prompts, **options)


@pytest.mark.parametrize("train", TRAINERS)
def test_each_method_raises_the_true_reward_well_above_the_start(train, reference):
    start, _ = true_reward_and_kl(reference, reference)
    assert start < 0.5
    policy, history = trained(train, reference, beta=0.02)
    assert true_reward_and_kl(policy, reference)[0] > 3.0
    assert history.mean("score", last=3) > 3.0 and history["kl"][0] == 0.0


@pytest.mark.parametrize(("train", "betas"), [(train_grpo, (0.02, 1.0)), (train_rloo, (0.02, 1.0))])
def test_a_larger_beta_ends_nearer_to_the_reference(train, betas, reference):
    kls = []
    for beta in betas:
        policy, _ = trained(train, reference, beta=beta)
        kls.append(true_reward_and_kl(policy, reference)[1])
    assert kls[1] < 0.5 * kls[0]


@pytest.mark.parametrize("train", TRAINERS)
def test_a_seed_repeats_exactly_and_another_differs(train, reference):
    results = [trained(train, reference, steps=3, seed=seed) for seed in (1, 1, 2)]
    (first, history), (again, same_history), (other, _) = results
    assert same_weights(first, again) and history.rows == same_history.rows
    assert not same_weights(first, other)


@pytest.mark.parametrize("train", TRAINERS)
def test_the_reference_is_left_alone(train, reference):
    before = copy.deepcopy(reference)
    trained(train, reference, steps=2)
    assert same_weights(before, reference)
    assert all(parameter.grad is None for parameter in reference.parameters())


@pytest.mark.parametrize("train", TRAINERS)
def test_the_loss_and_advantages_passed_in_are_those_trained_with(train, reference):
    seen = []

    def advantages(rewards):
        seen.append(rewards.shape)
        return torch.full_like(rewards, 2.5)

    def loss(log_probs, *others):
        advantage, mask = (others[2], others[3]) if train is train_grpo else others
        assert advantage.eq(2.5).all() and mask.shape == log_probs.shape
        return 0.0 * log_probs.sum() + 7.0

    policy, history = trained(
        train, reference, advantages=advantages, loss=loss, steps=2, group_size=3
    )
    assert seen == [(6, 3)] * 2 and history["loss"] == [7.0, 7.0]
    assert same_weights(policy, reference)


def test_rloo_takes_the_kl_from_the_reward_and_grpo_does_not(reference):
    policy = tiny_policy(seed=1)  # not the reference, so that log-ratios are not 0
    for train, priced in ((train_rloo, True), (train_grpo, False)):
        rewards, logged = [], []

        def advantages(values, rewards=rewards):
            rewards.append(values.mean().item())
            return values - values.mean(-1, keepdim=True)

        _, history = trained(
            train, reference, policy=copy.deepcopy(policy), advantages=advantages, steps=1, beta=2.0
        )
        logged = history["score"][0] - (2.0 * history["kl"][0] if priced else 0.0)
        assert abs(history["kl"][0]) > 0.1
        assert rewards[0] == pytest.approx(logged, abs=1e-5)


def test_answers_to_one_prompt_are_grouped(reference):
    """Each group's rewards must come from one prompt: tell prompts apart by their first token."""

    def first_token(rollouts):
        # The first token after the left padding names the prompt: 2, 4 or 5.
        place = rollouts.attention_mask.argmax(-1, keepdim=True)
        return rollouts.tokens.gather(-1, place)[:, 0]  # integers: counts are scores too

    def advantages(rewards):
        assert (rewards == rewards[:, :1]).all() and len(rewards[:, 0].unique()) > 1
        return torch.zeros_like(rewards)

    trained(train_grpo, reference, first_token, advantages=advantages, steps=3, group_size=4)


def test_more_epochs_mean_more_descent_on_the_same_answers(reference):
    calls = []

    def loss(log_probs, old_log_probs, *others):
        calls.append((log_probs.detach() - old_log_probs).abs().max().item())
        return grpo_loss(log_probs, old_log_probs, *others)

    trained(train_grpo, reference, loss=loss, epochs=3, steps=1)
    # Fresh rollouts start at ratio 1, up to float32's rounding of the log-probabilities.
    assert len(calls) == 3 and calls[0] < 1e-5 and min(calls[1:]) > 1e-3


@pytest.mark.parametrize("train", TRAINERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": -0.1}, "beta is -0.1"),
        ({"steps": 0}, "steps is 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"group_size": 1}, "G of 2 or more"),
        ({"group_size": 0}, "group_size is 0"),
        ({"prompts": []}, "prompts is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"score": lambda rollouts: torch.full((48,), math.nan)}, r"scores\[0\] is nan"),
        ({"score": lambda rollouts: torch.zeros(48, 1)}, r"shape \(48, 1\) for 48 answers"),
    ],
)
def test_training_refuses_what_it_cannot_do(train, change, message, reference):
    with pytest.raises(ValueError, match=message):
        trained(train, reference, **change)


def test_a_negative_beta_is_refused_whatever_the_loss(reference):
    with pytest.raises(ValueError, match="beta is -1"):
        trained(train_grpo, reference, beta=-1, loss=lambda log_probs, *others: log_probs.sum())


@pytest.mark.parametrize("train", TRAINERS)
def test_an_interrupted_run_leaves_a_history_on_disk(train, reference, tmp_path):
    steps = []

    def watch(rollouts):
        steps.append(len(rollouts.tokens))
        if len(steps) == 3:
            raise KeyboardInterrupt
        return {"answers": steps[-1]}

    path = tmp_path / "history.json"
    with pytest.raises(KeyboardInterrupt):
        trained(train, reference, watch=watch, history=History(path))
    found = History.load(path)
    assert found.interrupted and found["answers"] == [48, 48]


@pytest.mark.parametrize("train", TRAINERS)
def test_a_transformers_model_is_trained_by_the_same_call(train):
    policy = tiny_model()
    history = train(
        policy,
        copy.deepcopy(policy),
        lambda rollouts: (rollouts.tokens == 7).sum(-1),
        [[5, 6], [9]],
        steps=2,
        max_new_tokens=3,
        end_id=END,
        pad_id=257,
        prompts_a_step=2,
        group_size=4,
        show_progress=False,
    )
    assert len(history) == 2 and history["length"][0] > 1 and math.isfinite(history["loss"][1])
