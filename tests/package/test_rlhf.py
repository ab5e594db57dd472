"""What rollouts, best-of-n and RLHF with PPO promise."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_model
from tiny_task import (
    END,
    PAD,
    PROMPTS,
    SAMPLING,
    count_good,
    same_weights,
    tiny_policy,
    true_reward_and_kl,
)

from rlhf_minimal.history import History
from rlhf_minimal.log_probs import next_token_logits, token_log_probs
from rlhf_minimal.ppo import clipped_policy_loss, value_loss
from rlhf_minimal.reward_model import RewardModel
from rlhf_minimal.rlhf import (
    PolicyWithValue,
    kl_shaped_rewards,
    token_advantages,
    train_rlhf,
    whiten,
)
from rlhf_minimal.rollouts import best_of_n, best_of_n_kl, log_ratios, sample_rollouts

many = settings(deadline=None, derandomize=True, max_examples=60)


def random_answers(seed, rows=4, length=7):
    """Log-probabilities under two policies, values, scores; each answer one run of the mask."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    starts = torch.randint(0, length - 1, (rows,), generator=generator)
    lengths = torch.randint(1, length, (rows,), generator=generator)
    places = torch.arange(length)
    mask = (places >= starts[:, None]) & (places < (starts + lengths)[:, None])
    return noise(rows), noise(rows, length), noise(rows, length), noise(rows, length), mask.long()


# --- rewards a token ----------------------------------------------------------------------------


def test_shaped_rewards_by_hand():
    # β = 0.5, log-ratios 0.5, −1 and 2; the score 3 stands at the last answer token.
    rewards = kl_shaped_rewards(
        torch.tensor([3.0]),
        torch.tensor([[-9.0, -1.0, -2.0, -1.0, -9.0]]),
        torch.tensor([[-1.0, -1.5, -1.0, -3.0, -1.0]]),
        torch.tensor([[0, 1, 1, 1, 0]]),
        beta=0.5,
    )
    assert rewards.tolist() == [[0.0, -0.25, 0.5, 2.0, 0.0]]


@given(st.integers(0, 10_000), st.floats(0, 3))
@many
def test_shaped_rewards_sum_to_the_score_less_beta_times_the_log_ratio(seed, beta):
    scores, log_probs, reference, _, mask = random_answers(seed)
    rewards = kl_shaped_rewards(scores, log_probs, reference, mask, beta)
    for b in range(4):
        log_ratio = sum((log_probs - reference)[b, t].item() for t in range(7) if mask[b, t])
        expected = scores[b].item() - beta * log_ratio
        assert rewards[b].sum().item() == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert rewards[mask == 0].eq(0).all()


def test_an_answer_of_one_token_at_the_front_gets_its_score_there():
    zero = torch.zeros(1, 3)
    rewards = kl_shaped_rewards(torch.tensor([2.0]), zero, zero, torch.tensor([[1, 0, 0]]), 0.1)
    assert rewards.tolist() == [[2.0, 0.0, 0.0]]


def test_without_a_price_of_kl_only_the_score_is_left():
    scores, log_probs, reference, _, mask = random_answers(0)
    rewards = kl_shaped_rewards(scores, log_probs, reference, mask, beta=0.0)
    assert torch.equal(rewards.sum(-1), scores) and (rewards != 0).sum() == 4


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_what_stands_outside_the_answers_is_not_looked_at(junk):
    scores, log_probs, reference, _, mask = random_answers(1)
    expected = kl_shaped_rewards(scores, log_probs, reference, mask, 0.3)
    spoilt = log_probs.masked_fill(mask == 0, junk)
    assert torch.equal(kl_shaped_rewards(scores, spoilt, reference, mask, 0.3), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": -0.1}, "beta is -0.1; it must be 0 or more"),
        ({"scores": torch.tensor([1.0, math.nan])}, r"scores\[1\] is nan"),
        ({"scores": torch.zeros(3)}, r"scores have shape \(3,\), not \(2,\)"),
        ({"scores": torch.zeros(2, 1)}, r"scores have shape \(2, 1\)"),
        ({"mask": torch.zeros(2, 3)}, "mask counts no token"),
        ({"mask": torch.tensor([[1, 1, 0], [0, 0, 0]])}, "row 1 of mask has no answer token"),
        ({"mask": torch.ones(2, 4)}, r"mask has shape \(2, 4\)"),
        ({"ref_log_probs": torch.zeros(1, 3)}, r"ref_log_probs has shape \(1, 3\)"),
    ],
)
def test_shaped_rewards_refuse_what_cannot_be_right(change, message):
    arguments = dict(
        scores=torch.zeros(2),
        log_probs=torch.zeros(2, 3),
        ref_log_probs=torch.zeros(2, 3),
        mask=torch.ones(2, 3),
        beta=0.1,
    )
    with pytest.raises(ValueError, match=message):
        kl_shaped_rewards(**(arguments | change))


# --- whitening and advantages -------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(0.1, 100), st.floats(-100, 100))
@many
def test_whitened_values_have_mean_0_and_variance_1_where_the_mask_counts(seed, scale, shift):
    _, values, _, _, mask = random_answers(seed)
    white = whiten(scale * values + shift, mask)
    flat = zip(white.flatten().tolist(), mask.flatten().tolist(), strict=True)
    counted = [value for value, counts in flat if counts]
    mean = sum(counted) / len(counted)
    assert mean == pytest.approx(0, abs=1e-9)
    variance = sum((value - mean) ** 2 for value in counted) / len(counted)
    # The guard against 0/0 makes it v/(v + 1e-8) for values of variance v.
    spread = (scale * values[mask == 1]).var(correction=0).item()
    assert variance == pytest.approx(spread / (spread + 1e-8), rel=1e-9)
    assert white[mask == 0].eq(0).all()


def test_whitening_ignores_what_is_masked_out():
    _, values, _, _, mask = random_answers(2)
    expected = whiten(values, mask)
    assert torch.equal(whiten(values.masked_fill(mask == 0, math.nan), mask), expected)


def test_a_single_value_becomes_0_and_not_nan():
    assert whiten(torch.tensor([[5.0, 9.0]]), torch.tensor([[1, 0]])).tolist() == [[0.0, 0.0]]


def test_whitening_of_nothing_is_refused():
    with pytest.raises(ValueError, match="mask counts no token"):
        whiten(torch.ones(2, 2), torch.zeros(2, 2))


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
@many
def test_token_advantages_are_the_double_sum_over_each_answer(seed, gamma, lam):
    _, rewards, _, values, mask = random_answers(seed)
    advantages, returns = token_advantages(rewards, values, mask, gamma, lam)
    for b in range(4):
        places = [t for t in range(7) if mask[b, t]]
        for i, t in enumerate(places):
            total = 0.0
            for k, place in enumerate(places[i:]):
                last = place == places[-1]
                future = 0.0 if last else gamma * values[b, place + 1].item()
                delta = rewards[b, place].item() + future - values[b, place].item()
                total += (gamma * lam) ** k * delta
            assert advantages[b, t].item() == pytest.approx(total, rel=1e-9, abs=1e-10)
    expected = (advantages + values) * mask
    torch.testing.assert_close(returns, expected, rtol=1e-12, atol=1e-14)
    assert advantages[mask == 0].eq(0).all()


def test_with_lambda_1_returns_are_the_rewards_to_go():
    rewards, values = torch.tensor([[9.0, 1.0, 2.0, 4.0]]), torch.tensor([[5.0, 6.0, 7.0, 8.0]])
    _, returns = token_advantages(rewards, values, torch.tensor([[0, 1, 1, 1]]), lam=1.0)
    assert returns.tolist() == [[0.0, 7.0, 6.0, 4.0]]


def test_advantages_do_not_read_what_is_masked_out():
    _, rewards, _, values, mask = random_answers(3)
    expected = token_advantages(rewards, values, mask)
    rewards, values = (x.masked_fill(mask == 0, math.nan) for x in (rewards, values))
    assert all(map(torch.equal, token_advantages(rewards, values, mask), expected))


def test_no_argument_is_changed_in_place():
    arguments = random_answers(4)
    before = [x.clone() for x in arguments]
    scores, log_probs, reference, values, mask = arguments
    kl_shaped_rewards(scores, log_probs, reference, mask, 0.3)
    whiten(values, mask)
    token_advantages(log_probs, values, mask)
    assert all(map(torch.equal, arguments, before))


# --- rollouts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    return tiny_policy()


def roll(policy, prompts=PROMPTS, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return sample_rollouts(policy, prompts, generator=generator, **(SAMPLING | options))


def test_rollouts_hold_the_prompts_and_mask_the_answers(reference):
    rollouts = roll(reference, PROMPTS * 20)
    rows = zip(*(tensor.tolist() for tensor in rollouts), strict=True)
    for prompt, (tokens, real, mask) in zip(PROMPTS * 20, rows, strict=True):
        of_prompt = [t for t, r, m in zip(tokens, real, mask, strict=True) if r and not m]
        assert of_prompt == prompt
        answer = [t for t, m in zip(tokens, mask, strict=True) if m]
        assert 1 <= len(answer) <= 5 and END not in answer[:-1]
        assert len(answer) == 5 or answer[-1] == END
        assert all(r for r, m in zip(real, mask, strict=True) if m)


def test_answers_are_what_the_mask_counts(reference):
    rollouts = roll(reference)
    expected = [t[m == 1].tolist() for t, m in zip(rollouts.tokens, rollouts.mask, strict=True)]
    assert rollouts.answers() == expected
    assert rollouts.rows([2, 0]).answers() == [expected[2], expected[0]]


def test_log_ratios_are_policy_less_reference_on_answer_tokens(reference):
    policy = tiny_policy(seed=1)
    rollouts = roll(policy, PROMPTS * 5)
    with torch.no_grad():
        tables = [
            token_log_probs(next_token_logits(model, *rollouts[:2]), rollouts.tokens)
            for model in (policy, reference)
        ]
    expected = (tables[0] - tables[1]) * rollouts.mask[:, 1:]
    found = log_ratios(policy, reference, rollouts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # float32 ulps of sums near 8
    assert expected.abs().max() > 0.1


def test_log_ratios_are_positive_on_average_over_the_policy_s_samples(reference):
    policy = tiny_policy(seed=1)
    sums = log_ratios(policy, reference, roll(policy, PROMPTS * 200)).sum(-1)
    assert sums.mean() > 4 * sums.std() / math.sqrt(len(sums))


def test_a_wrong_number_of_scores_is_refused(reference):
    for shape in ((5,), (6, 1)):
        with pytest.raises(ValueError, match=r"score gave shape .* for 6 answers"):
            best_of_n(reference, lambda r, s=shape: torch.zeros(s), PROMPTS, n=2, **SAMPLING)


def test_best_of_n_keeps_the_best_answer_to_each_prompt(reference):
    seen = []

    def score(rollouts):
        seen.append((rollouts, count_good(rollouts)))
        return seen[0][1]

    generator = torch.Generator().manual_seed(0)
    best = best_of_n(reference, score, PROMPTS, n=16, generator=generator, **SAMPLING)
    rollouts, scores = seen[0]
    for row, prompt in enumerate(PROMPTS):
        group = scores[16 * row : 16 * (row + 1)]
        assert count_good(best)[row] == group.max() > group.median()
        prompts = best.rows([row])._replace(mask=best.attention_mask[[row]] - best.mask[[row]])
        assert prompts.answers() == [prompt]
        assert best.answers()[row] in rollouts.answers()[16 * row : 16 * (row + 1)]


def test_best_of_n_refuses_scores_that_cannot_be_compared(reference):
    with pytest.raises(ValueError, match=r"scores\[0\] is nan"):
        best_of_n(reference, lambda r: torch.full((6,), math.nan), PROMPTS, n=2, **SAMPLING)


@pytest.mark.parametrize("n", [0, -2])
def test_best_of_no_answer_is_refused(reference, n):
    with pytest.raises(ValueError, match=f"n is {n}"):
        best_of_n(reference, count_good, PROMPTS, n=n, **SAMPLING)
    with pytest.raises(ValueError, match=f"n is {n}"):
        best_of_n_kl(n)


def test_best_of_n_kl_by_hand():
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(4) == pytest.approx(1.3862944 - 0.75, abs=5e-8)


@given(st.integers(0, 10_000), st.integers(1, 40))
@many
def test_best_of_n_s_kl_is_a_bound_of_the_exact_divergence(seed, n):
    """Answers ranked 1 to 8: the best of n is at most the k-th with probability F(k)ⁿ."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(8, generator=generator, dtype=torch.float64).softmax(-1)
    cumulative = p.cumsum(-1).clamp(max=1.0) ** n
    best = cumulative.diff(prepend=torch.zeros(1, dtype=torch.float64))
    exact = torch.special.xlogy(best, best / p).sum().item()
    assert exact <= best_of_n_kl(n) + 1e-12


def test_best_of_n_s_kl_is_exact_where_answers_are_rare():
    p = torch.full((100_000,), 1e-5, dtype=torch.float64)
    best = p.cumsum(-1).clamp(max=1.0).pow(8).diff(prepend=torch.zeros(1, dtype=torch.float64))
    exact = torch.special.xlogy(best, best / p).sum().item()
    assert exact == pytest.approx(best_of_n_kl(8), abs=1e-3)


# --- the value head -----------------------------------------------------------------------------


@pytest.mark.parametrize("own_model", [False, True])
def test_the_value_of_a_token_is_read_before_it(reference, own_model):
    """Changing the last token changes its log-probability and no value that counts."""
    value_model = RewardModel(copy.deepcopy(reference)) if own_model else None
    model = PolicyWithValue(copy.deepcopy(reference), value_model)
    head = value_model.head if own_model else model.critic
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    rollouts = roll(reference, [[2]], seed=1, end_id=-1)
    tokens = rollouts.tokens.clone()
    tokens[0, -1] = (tokens[0, -1] + 1) % 6
    with torch.no_grad():
        log_probs, values = model(rollouts)
        other_log_probs, other_values = model(rollouts._replace(tokens=tokens))
    assert values.shape == log_probs.shape == (1, 5)
    torch.testing.assert_close(values, other_values, rtol=0, atol=1e-6)
    assert abs(log_probs[0, -1] - other_log_probs[0, -1]) > 0.01 and values.std() > 0.01


def test_a_new_value_head_foresees_nothing(reference):
    assert PolicyWithValue(copy.deepcopy(reference))(roll(reference))[1].eq(0).all()


# --- training -----------------------------------------------------------------------------------


def trained(reference, score=count_good, policy=None, prompts=PROMPTS, **options):
    policy = policy or copy.deepcopy(reference)
    defaults = dict(steps=20, beta=0.05, batch_size=48, minibatch_size=24, lr=1e-2)
    options = defaults | dict(show_progress=False) | SAMPLING | options
    return policy, train_rlhf(policy, reference, score, prompts, **options)


def test_ppo_raises_the_true_reward_well_above_the_start(reference):
    start, _ = true_reward_and_kl(reference, reference)
    assert start < 0.5
    policy, history = trained(reference)
    assert true_reward_and_kl(policy, reference)[0] > 3.0
    assert history.mean("score", last=3) > 3.0 and history["kl"][0] == 0.0


def test_a_reward_model_s_critic_starts_at_zero_and_learns_in_its_head_alone(reference):
    reward_model = RewardModel(copy.deepcopy(reference))
    reward_model.centre(torch.ones(1))
    critic = reward_model.critic()
    tokens = torch.tensor([[2, 3, 4]])
    assert not critic.token_values(tokens, torch.ones_like(tokens)).any()
    trained(reference, value_model=critic)
    assert same_weights(reward_model.trunk, critic.trunk)
    assert critic.head.weight.any()


def test_a_value_model_of_its_own_is_trained_too(reference):
    value_model = RewardModel(copy.deepcopy(reference))
    before = copy.deepcopy(value_model)
    policy, _ = trained(reference, value_model=value_model)
    assert true_reward_and_kl(policy, reference)[0] > 2.0
    assert not same_weights(before, value_model)


def test_a_larger_beta_ends_nearer_to_the_reference(reference):
    kls = []
    for beta in (0.02, 0.3, 1.0):
        policy, _ = trained(reference, beta=beta, steps=25)
        kls.append(true_reward_and_kl(policy, reference)[1])
    assert kls[1] < 0.8 * kls[0] and kls[2] < 0.3 * kls[1]


def test_a_seed_repeats_exactly_and_another_differs(reference):
    results = [trained(reference, steps=3, seed=seed) for seed in (1, 1, 2)]
    (first, history), (again, same_history), (other, _) = results
    assert same_weights(first, again) and history.rows == same_history.rows
    assert not same_weights(first, other)


def test_the_reference_is_left_alone(reference):
    before = copy.deepcopy(reference)
    trained(reference, steps=2)
    assert same_weights(before, reference)
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_every_row_is_used_once_an_epoch(reference):
    sizes = []

    def loss(log_probs, *others):
        sizes.append(len(log_probs))
        return clipped_policy_loss(log_probs, *others)

    trained(reference, policy_loss=loss, steps=1, batch_size=10, minibatch_size=4, epochs=2)
    assert sizes == [4, 4, 2, 4, 4, 2]


def test_the_ratio_is_to_the_policy_that_sampled(reference):
    moved = []

    def loss(log_probs, old_log_probs, *others):
        moved.append((log_probs - old_log_probs).abs().max().item())
        return clipped_policy_loss(log_probs, old_log_probs, *others)

    trained(reference, policy_loss=loss, steps=2, minibatch_size=48, epochs=3)
    # First passes start at ratio 1, up to float32's rounding of the log-probabilities.
    assert max(moved[0], moved[3]) < 1e-5 and min(moved[1:3] + moved[4:]) > 1e-3


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("shaped_rewards", kl_shaped_rewards),
        ("advantages", token_advantages),
        ("whitening", whiten),
        ("policy_loss", clipped_policy_loss),
        ("critic_loss", value_loss),
    ],
)
def test_a_function_passed_in_is_the_one_trained_with(name, own, reference):
    calls = itertools.count(1)

    def function(*arguments, **named):
        next(calls)
        result = own(*arguments, **named)
        return tuple(-2 * x for x in result) if isinstance(result, tuple) else -2 * result

    usual, _ = trained(reference, steps=2)
    other, _ = trained(reference, steps=2, **{name: function})
    assert next(calls) > 2 and not same_weights(usual, other)


def test_watch_s_numbers_go_into_the_history(reference):
    _, history = trained(reference, steps=2, watch=lambda r: {"answers": len(r.tokens)})
    assert history["answers"] == [48, 48]


def test_integer_scores_are_scores(reference):
    _, history = trained(reference, lambda r: ((r.tokens == 3) & (r.mask == 1)).sum(-1), steps=2)
    _, floats = trained(reference, steps=2)
    assert history.rows == floats.rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": -0.1}, "beta is -0.1"),
        ({"beta": math.nan}, "beta is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"minibatch_size": 0}, "minibatch_size is 0"),
        ({"value_lr": -1.0}, "value_lr is -1.0"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"prompts": []}, "prompts is 0"),
        ({"score": lambda r: torch.full((48,), math.nan)}, r"scores\[0\] is nan"),
        ({"score": lambda r: torch.zeros(48, 1)}, r"score gave shape \(48, 1\)"),
    ],
)
def test_training_refuses_what_it_cannot_do(change, message, reference):
    with pytest.raises(ValueError, match=message):
        trained(reference, **change)


def test_a_loss_that_is_nan_stops_the_run_and_leaves_the_weights(reference):
    policy = copy.deepcopy(reference)
    with pytest.raises(FloatingPointError, match="loss is nan"):
        trained(reference, policy=policy, policy_loss=lambda x, *others: x.sum() * math.nan)
    assert same_weights(policy, reference)


def test_an_interrupted_run_leaves_a_history_on_disk(reference, tmp_path):
    steps = itertools.count()

    def watch(rollouts):
        if next(steps) == 2:
            raise KeyboardInterrupt
        return {}

    path = tmp_path / "history.json"
    with pytest.raises(KeyboardInterrupt):
        trained(reference, watch=watch, history=History(path, beta=0.05))
    found = History.load(path)
    assert found.interrupted and len(found) == 2 and found.facts == {"beta": 0.05}
    assert {"score", "kl", "length", "policy_loss", "value_loss", "clip_fraction"} <= set(
        found.rows[0]
    )


def test_a_transformers_model_is_trained_by_the_same_call():
    policy = tiny_model()
    score = partial(lambda token, r: (r.tokens == token).float().sum(-1), 7)
    options = dict(steps=1, batch_size=8, prompts=[[5, 6], [9]], max_new_tokens=3, pad_id=PAD)
    _, history = trained(copy.deepcopy(policy), score, policy=policy, **options)
    assert len(history) == 1 and math.isfinite(history["policy_loss"][0])
