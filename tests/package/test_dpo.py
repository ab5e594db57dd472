"""What DPO, conservative DPO, IPO and SimPO promise."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_task import (
    PROMPTS,
    SAMPLING,
    count_good,
    same_weights,
    tiny_policy,
    true_reward_and_kl,
)

from rlhf_minimal.dpo import (
    dpo_loss,
    implicit_rewards,
    ipo_loss,
    reference_log_probs,
    reward_accuracy,
    reward_margin,
    simpo_loss,
    train_dpo,
    train_simpo,
)
from rlhf_minimal.history import History
from rlhf_minimal.pairs import TokenPair, pair_log_probs
from rlhf_minimal.rollouts import sample_rollouts

NAMES = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
LOSSES = [dpo_loss, partial(dpo_loss, label_smoothing=0.2), ipo_loss]
IDS = ["dpo", "conservative", "ipo"]
many = settings(deadline=None, derandomize=True, max_examples=60)


def double(*values):
    return tuple(torch.tensor([value], dtype=torch.float64) for value in values)


def random_log_probs(seed, size=8, number=4):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(number, size, generator=generator, dtype=torch.float64)
    return tuple((-20 + 5 * values).unbind())


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# --- the losses ---------------------------------------------------------------------------------


def test_dpo_by_hand():
    # chosen rose by 2 nats, rejected fell by 1: h = 0.5·(2 − (−1)) = 1.5; −log σ(1.5) = 0.2014133
    loss = dpo_loss(*double(-10.0, -21.0, -12.0, -20.0), beta=0.5)
    assert loss.item() == pytest.approx(0.2014133, abs=5e-8)


def test_conservative_dpo_by_hand():
    # h = 1.5 as above: 0.9·0.2014133 + 0.1·1.7014133
    loss = dpo_loss(*double(-10.0, -21.0, -12.0, -20.0), beta=0.5, label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.3514133, abs=5e-8)


def test_ipo_by_hand():
    # h = 3 nats, wanted 1/(2·0.5) = 1: (3 − 1)²
    assert ipo_loss(*double(-10.0, -21.0, -12.0, -20.0), beta=0.5).item() == pytest.approx(4.0)


def test_simpo_by_hand():
    # 2·(−0.5 − (−1.5)) − 0.5 = 1.5
    loss = simpo_loss(*double(-0.5, -1.5), beta=2.0, margin=0.5)
    assert loss.item() == pytest.approx(0.2014133, abs=5e-8)


@given(st.integers(0, 10_000), st.floats(0.01, 5.0))
@many
def test_before_training_dpo_is_log_2_and_ipo_a_quarter_over_beta_squared(seed, beta):
    chosen, rejected = random_log_probs(seed, number=2)
    start = (chosen, rejected, chosen, rejected)
    assert dpo_loss(*start, beta=beta).item() == pytest.approx(math.log(2), rel=1e-12)
    assert dpo_loss(*start, beta=beta, label_smoothing=0.3).item() == pytest.approx(
        math.log(2), rel=1e-12
    )
    assert ipo_loss(*start, beta=beta).item() == pytest.approx(1 / (4 * beta**2), rel=1e-12)


def test_losses_equal_loops_over_pairs():
    rows = random_log_probs(0)
    dpo, smoothed, ipo = [], [], []
    for a, b, c, d in zip(*(row.tolist() for row in rows), strict=True):
        h = (a - c) - (b - d)
        dpo.append(-math.log(sigmoid(0.3 * h)))
        smoothed.append(0.8 * dpo[-1] - 0.2 * math.log(sigmoid(-0.3 * h)))
        ipo.append((h - 1 / 0.6) ** 2)
    assert dpo_loss(*rows, beta=0.3).item() == pytest.approx(sum(dpo) / 8, rel=1e-12)
    assert ipo_loss(*rows, beta=0.3).item() == pytest.approx(sum(ipo) / 8, rel=1e-12)
    assert dpo_loss(*rows, beta=0.3, label_smoothing=0.2).item() == pytest.approx(
        sum(smoothed) / 8, rel=1e-12
    )


def test_dpo_equals_torch_s_binary_cross_entropy():
    a, b, c, d = random_log_probs(1)
    h = 0.3 * ((a - c) - (b - d))
    labels = torch.full_like(h, 0.8)
    expected = F.binary_cross_entropy_with_logits(h, labels)
    torch.testing.assert_close(dpo_loss(a, b, c, d, beta=0.3, label_smoothing=0.2), expected)


def test_simpo_equals_torch_s_binary_cross_entropy():
    a, b = random_log_probs(2, number=2)
    expected = F.binary_cross_entropy_with_logits(2.5 * (a - b) - 0.7, torch.ones_like(a))
    torch.testing.assert_close(simpo_loss(a, b, beta=2.5, margin=0.7), expected)


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 0.4])
def test_conservative_dpo_is_least_at_a_finite_margin(epsilon):
    def loss(h):
        zero = torch.zeros(1, dtype=torch.float64)
        return dpo_loss(h, zero, zero, zero, beta=1.0, label_smoothing=epsilon)

    best = math.log((1 - epsilon) / epsilon)
    h = torch.tensor([best], dtype=torch.float64, requires_grad=True)
    loss(h).backward()
    assert h.grad.item() == pytest.approx(0.0, abs=1e-15)
    entropy = -(1 - epsilon) * math.log(1 - epsilon) - epsilon * math.log(epsilon)
    assert loss(h).item() == pytest.approx(entropy, rel=1e-12)
    assert loss(h + 0.5) > loss(h) < loss(h - 0.5)


def test_ipo_is_zero_at_its_target_and_punishes_going_past_it():
    zero = torch.zeros(1, dtype=torch.float64)
    assert ipo_loss(zero + 2.5, zero, zero, zero, beta=0.2).item() == 0.0
    assert ipo_loss(zero + 3.5, zero, zero, zero, beta=0.2).item() == pytest.approx(1.0)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_gradients_of_losses_on_four_log_probs_are_right(loss):
    *policy, c, d = random_log_probs(3, size=4)
    policy = tuple(row.requires_grad_() for row in policy)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, c, d, beta=0.3), policy)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_no_gradient_goes_to_the_reference(loss):
    rows = [row.requires_grad_() for row in random_log_probs(3, size=4)]
    loss(*rows, beta=0.3).backward()
    assert rows[0].grad.abs().min() > 0 and rows[1].grad.abs().min() > 0
    assert rows[2].grad is None and rows[3].grad is None


def test_the_gradient_of_simpo_is_right():
    inputs = tuple(row.requires_grad_() for row in random_log_probs(4, size=4, number=2))
    assert torch.autograd.gradcheck(simpo_loss, inputs)


def test_the_gradient_of_dpo_is_the_paper_s():
    # −β·σ(r̂_rejected − r̂_chosen)·(∇log π(chosen) − ∇log π(rejected)), the mean over pairs
    rows = random_log_probs(5)
    chosen, rejected = (row.clone().requires_grad_() for row in rows[:2])
    dpo_loss(chosen, rejected, *rows[2:], beta=0.3).backward()
    r_chosen, r_rejected = 0.3 * (rows[0] - rows[2]), 0.3 * (rows[1] - rows[3])
    by_hand = -0.3 * torch.sigmoid(r_rejected - r_chosen) / 8
    torch.testing.assert_close(chosen.grad, by_hand, rtol=1e-12, atol=0)
    torch.testing.assert_close(rejected.grad, -by_hand, rtol=1e-12, atol=0)


def test_a_model_s_gradient_is_the_paper_s():
    pairs, beta = [TokenPair([2], [3, 3, 1], [4, 1]), TokenPair([4, 5], [5, 1], [2, 2, 1])], 0.3
    policy, reference = tiny_policy(0).double(), tiny_policy(1).double()
    expected = reference_log_probs(reference, pairs, pad_id=0).double()
    log_probs = pair_log_probs(policy, pairs, pad_id=0)
    dpo_loss(log_probs.chosen, log_probs.rejected, *expected.T, beta=beta).backward()
    by_hand = [torch.zeros_like(parameter) for parameter in policy.parameters()]
    for row in range(2):
        chosen, rejected, *_ = pair_log_probs(policy, pairs, pad_id=0)
        reward = beta * (torch.stack([chosen, rejected], -1)[row] - expected[row]).detach()
        gap = chosen[row] - rejected[row]
        gradients = torch.autograd.grad(gap, list(policy.parameters()))
        for total, gradient in zip(by_hand, gradients, strict=True):
            total -= beta * torch.sigmoid(reward[1] - reward[0]) * gradient / 2
    found = [parameter.grad for parameter in policy.parameters()]
    torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_arguments_are_not_changed_in_place(loss):
    rows = random_log_probs(6)
    before = [row.clone() for row in rows]
    loss(*rows, beta=0.3)
    assert all(map(torch.equal, rows, before))


@pytest.mark.parametrize("margin", [-2000.0, 2000.0])
def test_dpo_of_enormous_margins_is_finite(margin):
    chosen = torch.tensor([margin], requires_grad=True)
    zero = torch.zeros(1)
    loss = dpo_loss(chosen, zero, zero, zero, beta=1.0)
    loss.backward()
    assert loss.item() == max(0.0, -margin) and chosen.grad.item() == (-1.0 if margin < 0 else 0.0)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_would_broadcast_are_refused(loss, name):
    rows = dict(zip(NAMES, random_log_probs(7), strict=True))
    rows[name] = rows[name][:, None]
    with pytest.raises(ValueError, match=rf"{name} has shape \(8, 1\)"):
        loss(**rows)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_an_empty_batch_is_refused(loss):
    with pytest.raises(ValueError, match="policy_chosen is empty"):
        loss(*[torch.zeros(0)] * 4)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
def test_a_beta_that_is_not_above_zero_is_refused(loss, beta):
    with pytest.raises(ValueError, match=f"beta is {beta}"):
        loss(*random_log_probs(8), beta=beta)


@pytest.mark.parametrize("epsilon", [-0.1, 0.5, math.nan])
def test_label_smoothing_beyond_a_coin_s_toss_is_refused(epsilon):
    with pytest.raises(ValueError, match=f"label_smoothing is {epsilon}"):
        dpo_loss(*random_log_probs(8), label_smoothing=epsilon)


@pytest.mark.parametrize(
    ("options", "message"), [({"beta": 0.0}, "beta is 0.0"), ({"margin": -1.0}, "margin is -1.0")]
)
def test_simpo_refuses_numbers_without_a_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        simpo_loss(*random_log_probs(8, number=2), **options)


def test_implicit_rewards_and_their_margin_by_hand():
    a, b, c, d = double(-10.0, -21.0, -12.0, -20.0)
    assert implicit_rewards(a, c, beta=0.5).item() == 1.0
    assert implicit_rewards(b, d, beta=0.5).item() == -0.5
    assert reward_margin(a, b, c, d, beta=0.5).item() == 1.5


def test_accuracy_counts_a_tie_as_a_half():
    chosen, rejected = torch.tensor([2.0, 1.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 3.0, 4.0])
    assert reward_accuracy(chosen, rejected).item() == 0.625


# --- training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    return tiny_policy()


@pytest.fixture(scope="module")
def pairs(reference):
    """Pairs of the reference's answers, labelled by Bradley–Terry on twice the true reward."""
    generator = torch.Generator().manual_seed(0)
    prompts = PROMPTS * 300
    first, second = (
        sample_rollouts(reference, prompts, generator=generator, **SAMPLING) for _ in range(2)
    )
    better = torch.sigmoid(2 * (count_good(first) - count_good(second)))
    wins = torch.rand(900, generator=generator) < better
    rows = zip(prompts, first.answers(), second.answers(), wins.tolist(), strict=True)
    return [TokenPair(p, a, b) if won else TokenPair(p, b, a) for p, a, b, won in rows if a != b]


def trained(pairs, start, train=train_dpo, **options):
    policy = copy.deepcopy(start)
    options = dict(steps=60, lr=1e-2, show_progress=False) | options
    if train is train_dpo:
        options = {"reference": start} | options
    return policy, train(policy, pairs=pairs, **options)


@pytest.mark.parametrize(
    ("train", "options"),
    [
        (train_dpo, {"beta": 0.3}),
        (train_dpo, {"beta": 0.3, "loss": partial(dpo_loss, label_smoothing=0.1)}),
        (train_dpo, {"beta": 0.2, "loss": ipo_loss}),
        (train_simpo, {}),
    ],
    ids=["dpo", "conservative", "ipo", "simpo"],
)
def test_each_method_raises_the_true_reward_well_above_the_start(pairs, reference, train, options):
    start, _ = true_reward_and_kl(reference, reference)
    assert start < 0.5
    policy, history = trained(pairs, reference, train, **options)
    reward, kl = true_reward_and_kl(policy, reference)
    assert reward > 2 * start and kl > 0.1
    assert history["loss"][0] > history.mean("loss", last=10)


@pytest.mark.parametrize(("loss", "betas"), [(dpo_loss, (0.3, 10.0)), (ipo_loss, (0.2, 2.0))])
def test_a_larger_beta_ends_nearer_to_the_reference(pairs, reference, loss, betas):
    kls = []
    for beta in betas:
        policy, _ = trained(pairs, reference, loss=loss, beta=beta)
        kls.append(true_reward_and_kl(policy, reference)[1])
    assert kls[1] < 0.5 * kls[0]


def test_training_starts_at_log_2_and_no_margin(pairs, reference):
    _, history = trained(pairs, reference, steps=1)
    assert history["loss"][0] == pytest.approx(math.log(2), rel=1e-6)
    assert history["margin"][0] == pytest.approx(0, abs=1e-5)


def test_the_history_tells_the_change_of_both_likelihoods(pairs, reference):
    _, history = trained(pairs, reference, beta=0.3)
    columns = history["chosen_log_ratio"], history["rejected_log_ratio"]
    by_hand = [0.3 * (chosen - rejected) for chosen, rejected in zip(*columns, strict=True)]
    assert history["margin"] == pytest.approx(by_hand, abs=1e-5)
    assert history["margin"][-1] > 0.1


def test_the_reference_is_left_alone(pairs, reference):
    before = copy.deepcopy(reference)
    trained(pairs, reference, steps=3)
    assert same_weights(before, reference)
    assert all(parameter.grad is None for parameter in reference.parameters())


@pytest.mark.parametrize("train", [train_dpo, train_simpo])
def test_a_seed_repeats_exactly_and_another_differs(pairs, reference, train):
    results = [trained(pairs, reference, train, steps=5, seed=seed) for seed in (1, 1, 2)]
    (first, history), (again, same_history), (other, _) = results
    assert same_weights(first, again) and history.rows == same_history.rows
    assert not same_weights(first, other)


def test_reference_log_probs_made_beforehand_train_the_same(pairs, reference):
    table = reference_log_probs(reference, pairs, pad_id=0)
    live, _ = trained(pairs, reference, steps=5)
    beforehand, _ = trained(pairs, reference, steps=5, reference=table)
    assert same_weights(live, beforehand)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_reference_log_probs_do_not_depend_on_batches(pairs, reference, batch_size):
    table = reference_log_probs(reference, pairs[:50], pad_id=0, batch_size=batch_size)
    with torch.no_grad():
        log_probs = pair_log_probs(reference, pairs[:50], pad_id=0)
    # Sums of up to 5 log-probabilities, up to about 16 together: float32's step there is 2^-20.
    expected = torch.stack([log_probs.chosen, log_probs.rejected], -1)
    torch.testing.assert_close(table, expected, rtol=0, atol=8 * 2.0**-20)


def test_reference_log_probs_of_other_pairs_are_refused(pairs, reference):
    with pytest.raises(ValueError, match=rf"shape \(3, 2\) but there are {len(pairs)} pairs"):
        trained(pairs, reference, reference=torch.zeros(3, 2))


@pytest.mark.parametrize(("train", "number"), [(train_dpo, 4), (train_simpo, 2)])
def test_the_loss_passed_in_is_the_one_trained_with(pairs, reference, train, number):
    calls = []

    def loss(*log_probs, **numbers):
        calls.append((log_probs, numbers))
        return 0.0 * log_probs[0].sum() + 7.0

    policy, history = trained(pairs, reference, train, loss=loss, beta=0.25, steps=2, batch_size=8)
    assert history["loss"] == [7.0, 7.0] and len(calls) == 2
    assert same_weights(policy, reference)
    log_probs, numbers = calls[0]
    assert numbers["beta"] == 0.25
    assert [tuple(each.shape) for each in log_probs] == [(8,)] * number


def test_simpo_trains_on_means_and_dpo_on_sums(reference):
    pair = TokenPair([2], [3, 4, 1], [5, 1])
    seen = {}

    def look(name):
        def loss(chosen, rejected, *others, **numbers):
            seen[name] = torch.stack([chosen, rejected], -1).detach()[0]
            return chosen.sum()

        return loss

    trained([pair], reference, train_dpo, steps=1, loss=look("dpo"))
    trained([pair], reference, train_simpo, steps=1, loss=look("simpo"))
    torch.testing.assert_close(seen["simpo"] * torch.tensor([3.0, 2.0]), seen["dpo"])


@pytest.mark.parametrize("train", [train_dpo, train_simpo])
def test_a_beta_of_zero_is_refused_in_training(pairs, reference, train):
    with pytest.raises(ValueError, match=r"beta is 0\.0"):
        trained(pairs, reference, train, beta=0.0)


def test_an_interrupted_run_leaves_a_history_on_disk(pairs, reference, tmp_path):
    def stop(steps):
        if steps == 3:
            raise KeyboardInterrupt

    path = tmp_path / "history.json"
    with pytest.raises(KeyboardInterrupt):
        trained(pairs, reference, history=History(path, beta=0.1), after_step=stop)
    found = History.load(path)
    assert found.interrupted and len(found) == 3 and found.facts == {"beta": 0.1}
