"""What the KL divergence, its estimators and its controller promise."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_minimal.gpt import GPT, GPTConfig
from rlhf_minimal.kl import (
    AdaptiveKL,
    entropy,
    kl_divergence,
    kl_estimates,
    kl_from_logits,
    sequence_kl,
)
from rlhf_minimal.log_probs import sequence_log_probs, token_log_probs
from rlhf_minimal.rlhf import kl_shaped_rewards

P, Q = [0.2, 0.5, 0.3], [0.1, 0.4, 0.5]
many = settings(deadline=None, derandomize=True, max_examples=60)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def random_logits(seed, *shape, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- the divergence -----------------------------------------------------------------------------


def test_kl_of_the_hand_worked_distributions():
    # 0.2·log 2 + 0.5·log 1.25 + 0.3·log 0.6
    assert kl_divergence(double(P), double(Q)).item() == pytest.approx(0.0969535, abs=5e-8)


def test_kl_is_not_symmetric():
    # 0.1·log 0.5 + 0.4·log 0.8 + 0.5·log(5/3)
    assert kl_divergence(double(Q), double(P)).item() == pytest.approx(0.0968407, abs=5e-8)


def test_kl_equals_torch_s_own_with_its_arguments_turned_round():
    p, q = random_logits(0, 20, 7).softmax(-1), random_logits(1, 20, 7).softmax(-1)
    expected = F.kl_div(q.log(), p, reduction="none").sum(-1)
    torch.testing.assert_close(kl_divergence(p, q), expected, rtol=1e-12, atol=1e-14)


def test_kl_from_logits_equals_torch_s_distributions():
    p, q = random_logits(2, 20, 7, scale=3.0), random_logits(3, 20, 7, scale=3.0)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(kl_from_logits(p, q), expected, rtol=1e-12, atol=1e-14)


def test_kl_runs_over_the_dimension_asked_for():
    p, q = random_logits(4, 5, 3).softmax(0), random_logits(5, 5, 3).softmax(0)
    along_rows = kl_divergence(p.T.contiguous(), q.T.contiguous())
    torch.testing.assert_close(kl_divergence(p, q, dim=0), along_rows, rtol=1e-12, atol=0)
    torch.testing.assert_close(kl_from_logits(p.log(), q.log(), dim=0), along_rows)


@given(st.integers(0, 10_000), st.floats(0.01, 30.0))
@many
def test_kl_is_never_negative(seed, scale):
    p, q = random_logits(seed, 2, 4, 6, scale=scale)
    assert kl_from_logits(p, q).min() >= -1e-14  # float64's rounding of a sum near 0
    assert kl_divergence(p.softmax(-1), q.softmax(-1)).min() >= -1e-14


@given(st.integers(0, 10_000), st.floats(-500, 500))
@many
def test_a_constant_added_to_logits_changes_nothing(seed, shift):
    p, q = random_logits(seed, 2, 4, 6)
    # A shift of 500 costs 500 of float64's ulps of the logits, about 1e-13.
    shifted = kl_from_logits(p + shift, q)
    torch.testing.assert_close(shifted, kl_from_logits(p, q), rtol=0, atol=1e-12)


def test_an_outcome_that_p_never_gives_adds_nothing():
    p, q = double([0.0, 0.5, 0.5]), double([0.5, 0.25, 0.25])
    assert kl_divergence(p, q).item() == pytest.approx(math.log(2), rel=1e-12)
    assert kl_from_logits(p.log(), q.log()).item() == pytest.approx(math.log(2), rel=1e-12)


def test_an_outcome_impossible_under_both_adds_nothing():
    p, q = double([0.0, 0.5, 0.5]), double([0.0, 0.25, 0.75])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert kl_divergence(p, q).item() == pytest.approx(expected, rel=1e-12)
    assert kl_from_logits(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-12)


def test_an_outcome_that_only_p_gives_makes_it_infinite():
    p, q = double([0.5, 0.5]), double([1.0, 0.0])
    assert kl_divergence(p, q).item() == math.inf
    assert kl_from_logits(p.log(), q.log()).item() == math.inf


def test_huge_logits_do_no_harm():
    # p is sure of the first outcome, to which q gives e^-1000.
    kl = kl_from_logits(torch.tensor([1000.0, 0.0]), torch.tensor([-500.0, 500.0]))
    assert kl.item() == 1000.0


def test_gradients_of_kl_and_entropy_are_right():
    p, q = (random_logits(seed, 3, 4).requires_grad_() for seed in (6, 7))
    assert torch.autograd.gradcheck(kl_from_logits, (p, q))
    assert torch.autograd.gradcheck(entropy, (p,))
    assert torch.autograd.gradcheck(
        lambda p, q: kl_divergence(p.softmax(-1), q.softmax(-1)), (p, q)
    )


def test_a_forbidden_outcome_leaves_the_gradient_finite():
    p = torch.tensor([0.0, 1.0, -math.inf], requires_grad=True)
    q = torch.tensor([1.0, 0.0, -math.inf])
    kl_from_logits(p, q).backward()
    assert torch.isfinite(p.grad).all() and p.grad[:2].abs().min() > 0


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([0.5, 0.5], [0.2, 0.3, 0.5], r"p has shape \(2,\) but q has shape \(3,\)"),
        ([0.5, 0.6], [0.5, 0.5], "p is no distribution.*1.1"),
        ([0.5, 0.5], [1.5, -0.5], "q is no distribution.*smallest entry is -0.5"),
        ([0.5, 0.5], [math.nan, 0.5], r"q\[0\] is nan"),
        ([], [], "p is empty"),
    ],
)
def test_kl_refuses_what_is_no_distribution(p, q, message):
    with pytest.raises(ValueError, match=message):
        kl_divergence(torch.tensor(p), torch.tensor(q))


@pytest.mark.parametrize("bad", [[math.nan, 0.0], [-math.inf, -math.inf], [math.inf, 0.0]])
def test_logits_that_are_no_distribution_end_in_a_sentence(bad):
    good, bad = torch.zeros(2), torch.tensor(bad)
    with pytest.raises(ValueError, match="q_logits are no logits"):
        kl_from_logits(good, bad)
    with pytest.raises(ValueError, match="p_logits are no logits"):
        kl_from_logits(bad, good)
    with pytest.raises(ValueError, match="logits are no logits"):
        entropy(bad)


def test_entropy_equals_torch_s_and_counts_forbidden_outcomes_as_none():
    logits = random_logits(8, 10, 5, scale=2.0)
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), expected, rtol=1e-12, atol=1e-14)
    assert entropy(double([0.0, 0.0, -math.inf])).item() == pytest.approx(math.log(2), rel=1e-12)


# --- the estimators -----------------------------------------------------------------------------


def test_the_three_estimates_by_hand():
    # l = log 0.8 − log 0.4 = log 2: k1 = log 2, k2 = log²2/2, k3 = 1/2 − 1 + log 2
    k1, k2, k3 = kl_estimates(double([0.8]).log(), double([0.4]).log())
    log_2 = math.log(2)
    assert k1.item() == pytest.approx(log_2, rel=1e-12)
    assert k2.item() == pytest.approx(log_2**2 / 2, rel=1e-12)
    assert k3.item() == pytest.approx(log_2 - 0.5, rel=1e-12)


def test_k1_and_k3_have_the_divergence_as_their_mean_under_p():
    p, q = double(P), double(Q)
    k1, _, k3 = kl_estimates(p.log(), q.log())
    assert (p * k1).sum().item() == pytest.approx(0.0969535, abs=5e-8)
    assert (p * k3).sum().item() == pytest.approx(0.0969535, abs=5e-8)


def test_the_mean_of_k2_is_near_the_divergence_and_not_equal():
    p, q = double(P), double(Q)
    mean = (p * kl_estimates(p.log(), q.log())[1]).sum().item()
    by_hand = 0.1 * math.log(2) ** 2 + 0.25 * math.log(1.25) ** 2 + 0.15 * math.log(0.6) ** 2
    assert mean == pytest.approx(by_hand, rel=1e-12)
    assert abs(mean - 0.0969535) > 0.002  # 0.0996: a bias of 2.7%


@given(st.integers(0, 10_000))
@many
def test_the_mean_of_k3_is_unbiased_for_any_distributions(seed):
    p, q = random_logits(seed, 2, 6).log_softmax(-1)
    _, k2, k3 = kl_estimates(p, q)
    assert (p.exp() * k3).sum().item() == pytest.approx(kl_from_logits(p, q).item(), abs=1e-13)
    assert k2.min() >= 0 and k3.min() >= 0


def test_k3_keeps_its_digits_where_the_policies_almost_agree():
    # k3 ≈ l²/2 = 5e-9 at l = 1e-4; exp(−l) − 1 in float32 would leave nothing but rounding.
    k3 = kl_estimates(torch.tensor([1e-4]), torch.tensor([0.0]))[2]
    assert k3.item() == pytest.approx(5e-9, rel=0.01)


def test_estimates_refuse_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"log_p has shape \(3,\) but log_q has shape \(3, 1\)"):
        kl_estimates(torch.zeros(3), torch.zeros(3, 1))


# --- sequences ----------------------------------------------------------------------------------

VOCABULARY, LENGTH = 3, 3


def two_models():
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = GPTConfig(vocab_size=VOCABULARY, context=8, width=8, layers=1, heads=2)
        models.append(GPT(config).double())
    return models


@pytest.fixture(scope="module")
def enumerated():
    """Every answer of 3 tokens to a prompt of 2: logits of two models, tokens, mask, log-probs."""
    answers = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
    tokens = torch.cat([torch.tensor([[1, 2]]).expand(len(answers), 2), answers], -1)
    mask = torch.cat([torch.zeros(len(answers), 2), torch.ones(len(answers), LENGTH)], -1)
    with torch.no_grad():
        logits = [model(tokens) for model in two_models()]
    log_probs = [sequence_log_probs(each, tokens, mask) for each in logits]
    assert log_probs[0].exp().sum().item() == pytest.approx(1.0, rel=1e-12)
    return logits, tokens, mask, log_probs


def test_sequence_kl_is_on_average_that_of_whole_sequences(enumerated):
    (p_logits, q_logits), _, mask, (log_p, log_q) = enumerated
    estimate = sequence_kl(p_logits[:, :-1], q_logits[:, :-1], mask[:, 1:])
    whole = kl_divergence(log_p.exp(), log_q.exp()).item()
    assert whole > 0.1
    assert (log_p.exp() * estimate).sum().item() == pytest.approx(whole, rel=1e-10)


def test_the_mean_log_ratio_of_sequences_is_their_divergence(enumerated):
    _, _, _, (log_p, log_q) = enumerated
    k1, _, k3 = kl_estimates(log_p, log_q)
    whole = kl_divergence(log_p.exp(), log_q.exp()).item()
    assert (log_p.exp() * k1).sum().item() == pytest.approx(whole, rel=1e-10)
    assert (log_p.exp() * k3).sum().item() == pytest.approx(whole, rel=1e-10)


def test_shaped_rewards_pay_the_divergence_on_average(enumerated):
    # Σ_y π(y)·(sum of the shaped rewards of y) = E[r] − β·KL(π‖π_ref)
    (p_logits, q_logits), tokens, mask, (log_p, log_q) = enumerated
    scores = random_logits(0, len(tokens))
    rewards = kl_shaped_rewards(
        scores,
        token_log_probs(p_logits, tokens),
        token_log_probs(q_logits, tokens),
        mask[:, 1:],
        beta=0.3,
    )
    objective = (log_p.exp() * scores).sum() - 0.3 * kl_divergence(log_p.exp(), log_q.exp())
    total = (log_p.exp() * rewards.sum(-1)).sum()
    assert total.item() == pytest.approx(objective.item(), rel=1e-10)


def test_sequence_kl_adds_the_counted_positions_alone():
    p, q = random_logits(9, 2, 3, 4, 5)
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
    per_token = kl_from_logits(p, q)
    expected = [per_token[0, [0, 2, 3]].sum(), per_token[1, 1], torch.tensor(0.0).double()]
    torch.testing.assert_close(sequence_kl(p, q, mask), torch.stack(expected), rtol=1e-12, atol=0)


def test_sequence_kl_does_not_look_at_padding():
    p, q = random_logits(10, 2, 2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = sequence_kl(p, q, mask)
    p[mask == 0] = math.nan
    assert torch.equal(sequence_kl(p, q, mask), expected)


@pytest.mark.parametrize(
    ("mask", "message"),
    [(torch.zeros(2, 3), "mask counts no token"), (torch.ones(2, 4), r"mask has shape \(2, 4\)")],
)
def test_sequence_kl_refuses_masks_that_cannot_be_right(mask, message):
    with pytest.raises(ValueError, match=message):
        sequence_kl(torch.zeros(2, 3, 5), torch.zeros(2, 3, 5), mask)


# --- the controller -----------------------------------------------------------------------------


def test_the_controller_s_steps_by_hand():
    # error = 6.6/6 − 1 = 0.1, over half a horizon: β·(1 + 0.05)
    assert AdaptiveKL(0.2, target=6.0, horizon=100).update(6.6, 50) == pytest.approx(0.21)
    # error is cut at −0.2: β·(1 − 0.2·0.5)
    assert AdaptiveKL(0.2, target=6.0, horizon=100).update(0.0, 50) == pytest.approx(0.18)
    # and at 0.2: β·(1 + 0.2·0.5)
    assert AdaptiveKL(0.2, target=6.0, horizon=100).update(60.0, 50) == pytest.approx(0.22)


def test_the_controller_leaves_beta_alone_at_its_target():
    assert AdaptiveKL(0.2, target=6.0, horizon=100).update(6.0, 50) == 0.2


def test_the_controller_brings_a_responsive_kl_to_its_target():
    controller = AdaptiveKL(beta=0.05, target=4.0, horizon=1000)
    kl = math.inf
    for _ in range(300):
        kl = 1.0 / controller.beta  # a policy that moves less, the dearer a nat is
        controller.update(kl, samples=200)
    assert kl == pytest.approx(4.0, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0"),
        ({"target": -1.0}, "target is -1.0"),
        ({"horizon": 0}, "horizon is 0"),
    ],
)
def test_the_controller_refuses_numbers_it_could_not_leave(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveKL(**({"beta": 0.1, "target": 6.0} | arguments))


@pytest.mark.parametrize(("kl", "samples"), [(math.nan, 10), (1.0, 0), (1.0, -5)])
def test_the_controller_refuses_measurements_that_say_nothing(kl, samples):
    controller = AdaptiveKL(0.1, target=6.0)
    with pytest.raises(ValueError):
        controller.update(kl, samples)
    assert controller.beta == 0.1
