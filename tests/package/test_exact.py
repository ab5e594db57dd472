"""What the enumerable world promises, and what it proves about the package's estimators and losses.

Sums over all answers, in float64: what is called equal here is equal to 1e-9 or better, so these
are proofs by arithmetic and not by luck. What is sampled has fixed seeds, and thresholds at least
twice as wide as what several other seeds gave.
"""

import itertools
import math
from functools import partial

import pytest
import torch

import rlhf_minimal.exact_table as exact_table_module
from rlhf_minimal.exact import (
    TabularPolicy,
    World,
    all_answers,
    make_world,
    objective,
    optimal_policy,
    optimality_gap,
    prefix_rows,
)
from rlhf_minimal.exact_methods import train_exact_gradient, train_group, train_ppo_exact
from rlhf_minimal.exact_preferences import (
    Preferences,
    merge_alike,
    population_preferences,
    sample_preferences,
    train_on_preferences,
    without_label_noise,
)
from rlhf_minimal.exact_table import exact_table, markdown
from rlhf_minimal.grpo import group_relative_advantages, rloo_advantages
from rlhf_minimal.kl import kl_estimates, kl_from_logits, sequence_kl
from rlhf_minimal.policy_gradient import policy_gradient_loss
from rlhf_minimal.ppo import clipped_policy_loss
from rlhf_minimal.rlhf import kl_shaped_rewards, token_advantages

WORLD = make_world()
REFERENCE, OPTIMUM = WORLD.reference(), WORLD.optimum()
BEGINS = WORLD.distance(REFERENCE).item()


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small are slower on several threads; the setting is put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved_policy(world=WORLD, seed=0, scale=0.7):
    """A policy some way from the reference, in a direction of its own."""
    noise = scale * normal(*world.reference_logits.shape, seed=seed)
    return TabularPolicy(world.reference_logits + noise, world.length)


def gradient(policy, value):
    (result,) = torch.autograd.grad(value, [policy.logits])
    return result


def same(a, b, tolerance=1e-12):
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=tolerance)


# --- the optimum ----------------------------------------------------------------------------------


def test_optimum_of_two_answers_worked_by_hand():
    # π_ref = (0.8, 0.2), r = (0, log 2), β = 0.5: weights 0.8·1 and 0.2·e^{2·log 2} = 0.8.
    reference = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
    rewards = torch.tensor([0.0, math.log(2)], dtype=torch.float64)
    expected = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert same(optimal_policy(reference, rewards, 0.5).exp(), expected)
    # β = 1 stays closer: 0.8 and 0.4, that is 2/3 and 1/3.
    expected = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)
    assert same(optimal_policy(reference, rewards, 1.0).exp(), expected)


def test_optimum_is_normalised_and_equals_its_definition():
    weights = REFERENCE.exp() * (WORLD.rewards / WORLD.beta).exp()
    assert same(OPTIMUM.exp(), weights / weights.sum(-1, keepdim=True))
    assert same(OPTIMUM.exp().sum(-1), torch.ones(4, dtype=torch.float64))


def test_optimum_ignores_a_reward_that_all_answers_share():
    assert same(optimal_policy(REFERENCE, WORLD.rewards + 1000.0, WORLD.beta), OPTIMUM, 1e-9)


def test_an_answer_the_reference_never_gives_stays_impossible():
    reference = torch.tensor([-math.inf, math.log(0.5), math.log(0.5)])
    optimum = optimal_policy(reference, torch.tensor([100.0, 0.0, 0.0]), 0.5)
    assert optimum.exp().tolist() == pytest.approx([0.0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("reference", "rewards", "beta", "message"),
    [
        ([-0.7, -0.7], [0.0, 1.0], 0.0, "beta is 0.0; it must be above 0"),
        ([-0.7, -0.7], [0.0, 1.0], -1.0, "beta is -1.0"),
        ([-0.7, -0.7], [0.0, 1.0], math.nan, "beta is nan"),
        ([-0.7, -0.7], [0.0, 1.0, 2.0], 0.5, "shape"),
        ([], [], 0.5, "empty"),
        ([-0.7, -0.7], [0.0, math.nan], 0.5, r"rewards\[1\] is nan"),
        ([-0.7, -0.7], [math.inf, 0.0], 0.5, r"rewards\[0\] is inf"),
        ([math.nan, -0.7], [0.0, 1.0], 0.5, r"reference_log_probs\[0\] is nan"),
        ([math.inf, -0.7], [0.0, 1.0], 0.5, r"reference_log_probs\[0\] is inf"),
        ([-math.inf, -math.inf], [0.0, 1.0], 0.5, "-inf for every answer"),
    ],
)
def test_optimum_refuses_bad_input(reference, rewards, beta, message):
    with pytest.raises(ValueError, match=message):
        optimal_policy(torch.tensor(reference), torch.tensor(rewards), beta)


def test_no_policy_scores_higher_than_the_optimum():
    best = objective(OPTIMUM, REFERENCE, WORLD.rewards, WORLD.beta)
    for seed in range(20):
        for scale in (0.01, 0.3, 3.0):
            other = (OPTIMUM + scale * normal(4, 125, seed=seed)).log_softmax(-1)
            assert objective(other, REFERENCE, WORLD.rewards, WORLD.beta) < best


def test_the_objective_is_flat_at_the_optimum_and_steep_at_the_reference():
    steepness = []
    for start in (OPTIMUM, REFERENCE):
        logits = start.clone().requires_grad_()
        objective(logits.log_softmax(-1), REFERENCE, WORLD.rewards, WORLD.beta).backward()
        steepness.append(logits.grad.abs().max().item())
    assert steepness[0] < 1e-14 < 1e-3 < steepness[1]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_missing_from_the_objective_is_beta_times_kl_to_the_optimum(seed):
    log_probs = moved_policy(seed=seed)().detach()
    gap = optimality_gap(log_probs, REFERENCE, WORLD.rewards, WORLD.beta)
    assert gap > 0.1
    assert same(gap, WORLD.beta * kl_from_logits(log_probs, OPTIMUM).mean())


# --- the world and its policy ---------------------------------------------------------------------


def test_the_world_is_the_one_described():
    assert REFERENCE.shape == WORLD.rewards.shape == (4, 125)
    assert same(REFERENCE.exp().sum(-1), torch.ones(4, dtype=torch.float64))
    assert 1.0 < BEGINS < 1.2
    again, other = make_world(), make_world(seed=1)
    assert torch.equal(again.rewards, WORLD.rewards)
    assert torch.equal(again.reference_logits, WORLD.reference_logits)
    assert not torch.equal(other.rewards, WORLD.rewards)


def test_every_prefix_has_a_row_of_its_own():
    answers = all_answers(vocabulary=3, length=3)
    rows = prefix_rows(answers, vocabulary=3)
    row_of = {}
    for answer, places in zip(answers.tolist(), rows.tolist(), strict=True):
        for t, row in enumerate(places):
            assert row_of.setdefault(tuple(answer[:t]), row) == row
    assert sorted(row_of.values()) == list(range(1 + 3 + 9))


def test_the_probability_of_an_answer_is_the_product_of_its_tokens():
    # Rows: empty prefix, prefix 0, prefix 1. P(1, 0) = 3/4 · 1/3.
    table = torch.tensor([[[0.25, 0.75], [0.5, 0.5], [1 / 3, 2 / 3]]], dtype=torch.float64)
    policy = TabularPolicy(table.log(), length=2)
    expected = torch.tensor([[0.125, 0.125, 0.25, 0.5]], dtype=torch.float64)
    assert same(policy().exp(), expected)


def test_the_table_can_represent_the_optimum():
    """Every distribution is a product of conditionals, so nothing is out of the policy's reach."""
    tree = OPTIMUM.exp().reshape(4, 5, 5, 5)
    levels = [tree.sum((2, 3)), tree.sum(3), tree]  # what each prefix goes on to hold
    table = torch.cat([level.reshape(4, -1, 5) for level in levels], dim=1).log()
    assert same(TabularPolicy(table, length=3)(), OPTIMUM, 1e-10)


def test_samples_come_as_often_as_their_probabilities_say():
    policy, count = moved_policy(), 20_000
    drawn = policy.sample(count, torch.Generator().manual_seed(0))
    probabilities = policy().detach().exp()
    frequency = torch.stack([torch.bincount(row, minlength=125) for row in drawn]) / count
    error = (probabilities * (1 - probabilities) / count).sqrt()
    assert ((frequency - probabilities).abs() < 5 * error + 1 / count).all()  # 500 cells, 5 errors


def test_a_table_that_lacks_a_prefix_is_refused():
    with pytest.raises(ValueError, match=r"must be \(P, 31, 5\)"):
        TabularPolicy(torch.zeros(4, 30, 5), length=3)
    with pytest.raises(ValueError, match="vocabulary is 0"):
        make_world(vocabulary=0)


# --- KL estimators, by enumeration ----------------------------------------------------------------


def mean_under(log_p, values):
    """E_p[values], (P, Y) -> (P,)."""
    return (log_p.exp() * values).sum(-1)


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    log_p = moved_policy()().detach()
    exact = kl_from_logits(log_p, REFERENCE)
    k1, k2, k3 = (mean_under(log_p, k) for k in kl_estimates(log_p, REFERENCE))
    assert same(k1, exact) and same(k3, exact)
    assert ((k2 - exact).abs() > 0.01).all()


def test_the_bias_of_k2_is_a_sixth_of_the_third_moment_where_the_policies_are_close():
    # E_p[e^{-l}] = 1 gives KL = E[l²/2 − l³/6 + …], so E[k2] − KL = E[l³]/6 + O(l⁴).
    direction = normal(4, 125, seed=3)
    for scale in (1e-2, 1e-3):
        log_p = (REFERENCE + scale * direction).log_softmax(-1)
        _, k2, _ = (mean_under(log_p, k) for k in kl_estimates(log_p, REFERENCE))
        bias = k2 - kl_from_logits(log_p, REFERENCE)
        third = mean_under(log_p, (log_p - REFERENCE) ** 3) / 6
        fourth = mean_under(log_p, (log_p - REFERENCE) ** 4)
        assert ((bias - third).abs() < 0.1 * fourth + 1e-15).all()


def test_k2_and_k3_are_never_negative_and_k1_often_is():
    log_p = moved_policy()().detach()
    k1, k2, k3 = kl_estimates(log_p, REFERENCE)
    assert (k2 >= 0).all() and (k3 >= 0).all()
    assert mean_under(log_p, (k1 < 0).double()).min() > 0.2


def test_the_reversed_ratio_is_negative_on_average():
    log_p = moved_policy()().detach()
    reversed_k1, _, reversed_k3 = (mean_under(log_p, k) for k in kl_estimates(REFERENCE, log_p))
    exact = kl_from_logits(log_p, REFERENCE)
    assert (reversed_k1 < -0.1).all() and same(reversed_k1, -exact)
    assert ((reversed_k3 - exact).abs() > 0.01).all()


def test_gradients_of_the_estimators_as_losses():
    """k1 teaches nothing, k2 descends KL(π‖π_ref), and k3 descends KL(π_ref‖π) instead."""
    policy = moved_policy()

    def as_loss(which):
        """The mean of an estimate over samples from π; being samples, they carry no gradient."""
        log_p = policy()
        return mean_under(log_p.detach(), kl_estimates(log_p, REFERENCE)[which]).mean()

    k1, k2, k3 = (gradient(policy, as_loss(which)) for which in range(3))
    exact = gradient(policy, kl_from_logits(policy(), REFERENCE).mean())
    forward = gradient(policy, kl_from_logits(REFERENCE, policy()).mean())
    assert exact.abs().max() > 0.01
    assert k1.abs().max() < 1e-15
    assert same(k2, exact, 1e-15)
    assert same(k3, forward, 1e-15)
    assert (k3 - exact).abs().max() > 0.01


def test_the_ratio_gives_k3_the_gradient_that_it_lacks():
    """π/π_old is 1 where the policy is the one that sampled, but it has a gradient."""
    policy = moved_policy()
    log_p = policy()
    ratio = (log_p - log_p.detach()).exp()
    loss = mean_under(log_p.detach(), ratio * kl_estimates(log_p, REFERENCE)[2]).mean()
    exact = gradient(policy, kl_from_logits(policy(), REFERENCE).mean())
    assert exact.abs().max() > 0.01
    assert same(gradient(policy, loss), exact, 1e-15)


def test_the_kl_of_sequences_is_the_expected_sum_of_the_kls_of_tokens():
    policy, start = moved_policy(), WORLD.start()
    for prompt in range(4):
        logits = policy.logits[prompt, policy.rows].detach()  # (Y, T, V)
        reference_logits = start.logits[prompt, start.rows].detach()
        along = sequence_kl(logits, reference_logits, torch.ones(125, 3))  # (Y,)
        log_p = policy().detach()[prompt]
        exact = kl_from_logits(log_p, REFERENCE[prompt])
        assert same((log_p.exp() * along).sum(), exact)
        assert (along - exact).abs().max() > 0.01  # true of the mean, not of each sequence


# --- policy-gradient estimators, by enumeration ---------------------------------------------------

TINY = make_world(seed=5, prompts=1, vocabulary=2, length=2)


def expected_group_gradient(policy, advantages, group):
    """E over all groups of ``group`` answers of what one step of ``train_group`` descends."""
    log_probs, reference = policy()[0], TINY.reference()[0]
    shaped = (TINY.rewards[0] - TINY.beta * (log_probs - reference)).detach()
    total = 0.0
    for answers in itertools.product(range(4), repeat=group):
        answers = torch.tensor(answers)
        chance = log_probs[answers].sum().exp().detach()
        weights = advantages(shaped[answers][None])[0]
        total = total + chance * policy_gradient_loss(log_probs[answers], weights)
    return gradient(policy, total)


def exact_gradient(policy):
    """Of minus the objective, which is what a loss descends."""
    return gradient(policy, -objective(policy(), TINY.reference(), TINY.rewards, TINY.beta))


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize(
    ("advantages", "factor"),
    [
        (lambda rewards: rewards, lambda group: 1.0),  # REINFORCE without a baseline
        (rloo_advantages, lambda group: 1.0),
        (
            partial(group_relative_advantages, normalize_by_std=False),
            lambda group: (group - 1) / group,  # each answer's own reward is in its baseline
        ),
    ],
    ids=["reinforce", "rloo", "group mean"],
)
def test_the_mean_estimate_is_the_exact_gradient(advantages, factor, group):
    policy = moved_policy(TINY)
    exact = exact_gradient(policy)
    assert exact.abs().max() > 0.01
    assert same(expected_group_gradient(policy, advantages, group), factor(group) * exact, 1e-15)


@pytest.mark.parametrize("group", [2, 3])
def test_dividing_by_the_deviation_bends_the_gradient(group):
    policy = moved_policy(TINY)
    bent = expected_group_gradient(policy, group_relative_advantages, group)
    cosine = torch.cosine_similarity(bent.flatten(), exact_gradient(policy).flatten(), dim=0)
    assert 0 < cosine < 0.995  # no factor makes them equal


def ppo_gradient(policy, lam, values):
    """E over all answers of the gradient of PPO's first step, with a given table of values."""
    old = policy.token_log_probs().detach()[0]  # (Y, T)
    reference, mask = TINY.start().token_log_probs().detach()[0], torch.ones_like(old)
    rewards = kl_shaped_rewards(TINY.rewards[0], old, reference, mask, TINY.beta)
    advantages, _ = token_advantages(rewards, values[policy.rows], mask, lam=lam)
    total = 0.0
    for answer, new in enumerate(policy.token_log_probs()[0]):
        loss = clipped_policy_loss(new, old[answer], advantages[answer])  # mean over 2 tokens
        total = total + old[answer].sum().exp() * loss * 2
    return gradient(policy, total)


def test_ppo_starts_along_the_exact_gradient_whatever_its_values_if_lambda_is_one():
    policy, values = moved_policy(TINY), normal(3, seed=9)
    exact = exact_gradient(policy)
    assert same(ppo_gradient(policy, 1.0, values), exact, 1e-14)
    assert (ppo_gradient(policy, 0.5, values) - exact).abs().max() > 0.01


def test_at_the_optimum_every_group_teaches_exactly_nothing():
    """All shaped rewards are β·log Z there, so RLOO's advantages vanish: no noise is left."""
    shaped = WORLD.rewards - WORLD.beta * (OPTIMUM - REFERENCE)
    assert rloo_advantages(shaped).abs().max() < 1e-13
    assert rloo_advantages(WORLD.rewards).abs().max() > 1.0


# --- DPO on all preferences -----------------------------------------------------------------------


def population_loss(log_probs):
    """The expected DPO loss, written out once more: −Σ w·log σ(β·(h_chosen − h_rejected))."""
    data = population_preferences(WORLD)
    h = log_probs - REFERENCE
    margin = WORLD.beta * (h[data.prompt, data.chosen] - h[data.prompt, data.rejected])
    return -(data.weights * torch.nn.functional.logsigmoid(margin)).sum()


def test_the_expected_dpo_loss_is_least_at_the_optimum():
    slopes = []
    for start in (OPTIMUM, REFERENCE):
        log_probs = start.clone().requires_grad_()
        population_loss(log_probs).backward()
        slopes.append(log_probs.grad.abs().max().item())
    assert slopes[0] < 1e-15 < 1e-4 < slopes[1]
    least = population_loss(OPTIMUM)
    for seed in range(5):
        assert population_loss((OPTIMUM + 0.1 * normal(4, 125, seed=seed)).log_softmax(-1)) > least


def test_population_preferences_are_all_there_once():
    data = population_preferences(WORLD)
    assert same(data.weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    key = (data.prompt * 125 + data.chosen) * 125 + data.rejected
    assert len(key.unique()) == 4 * 125 * 124
    weights = torch.zeros(4, 125, 125, dtype=torch.float64)
    weights[data.prompt, data.chosen, data.rejected] = data.weights
    odds = weights[2, 7, 90] / weights[2, 90, 7]  # Bradley–Terry: e^{r_a − r_b}
    assert same(odds.log(), WORLD.rewards[2, 7] - WORLD.rewards[2, 90], 1e-12)


def test_sampled_preferences_follow_the_population():
    count = 50_000
    data = sample_preferences(WORLD, count, torch.Generator().manual_seed(0))
    assert same(data.weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    everything = population_preferences(WORLD)

    def better_chosen(pairs):
        different = pairs.chosen != pairs.rejected
        rewards = WORLD.rewards
        margin = rewards[pairs.prompt, pairs.chosen] - rewards[pairs.prompt, pairs.rejected]
        return (pairs.weights * (margin > 0)).sum() / (pairs.weights * different).sum()

    expected = better_chosen(everything)
    assert 0.6 < expected < 0.8  # the labels are noisy
    standard_error = (expected * (1 - expected) / count).sqrt()
    assert (better_chosen(data) - expected).abs() < 4 * standard_error


def test_like_comparisons_put_together_weigh_what_they_weighed():
    data = sample_preferences(WORLD, 20_000, torch.Generator().manual_seed(0))
    merged = merge_alike(data)
    tables = []
    for pairs in (data, merged):
        table = torch.zeros(4, 125, 125, dtype=torch.float64)
        tables.append(table.index_put(tuple(pairs[:3]), pairs.weights, accumulate=True))
    assert len(merged.weights) < len(data.weights)
    assert len(torch.stack(merged[:3]).unique(dim=1).T) == len(merged.weights)
    assert same(*tables)


def test_labels_without_noise_are_the_population_s_where_a_pair_was_drawn():
    data = sample_preferences(WORLD, 500, torch.Generator().manual_seed(0))
    quiet = merge_alike(without_label_noise(WORLD, data))
    assert same(quiet.weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    odds = torch.zeros(4, 125, 125, dtype=torch.float64)
    odds[tuple(quiet[:3])] = quiet.weights
    prompt, chosen, rejected, _ = data
    margin = WORLD.rewards[prompt, chosen] - WORLD.rewards[prompt, rejected]
    assert same((odds / odds.mT)[prompt, chosen, rejected].log(), margin)


# --- training -------------------------------------------------------------------------------------


def test_the_exact_gradient_arrives():
    policy, history = train_exact_gradient(WORLD, steps=500)
    assert history["kl"][0] == pytest.approx(BEGINS)
    assert history["kl"][-1] < 1e-4
    assert WORLD.distance(policy().detach()).item() == pytest.approx(history["kl"][-1])


def test_dpo_on_all_preferences_arrives():
    everything = population_preferences(WORLD)
    _, history = train_on_preferences(WORLD, everything, held_out=everything, steps=200)
    assert history["held_out_loss"][0] == pytest.approx(math.log(2), abs=1e-12)
    assert history["held_out_loss"][-1] == pytest.approx(population_loss(OPTIMUM).item(), abs=1e-8)
    assert history["kl"][-1] < 1e-6


@pytest.mark.parametrize(
    ("train", "nearer_than"),
    [
        (partial(train_group, steps=400), 0.025),
        (partial(train_group, steps=400, advantages=group_relative_advantages), 0.025),
        (partial(train_group, steps=400, kl_in="k2"), 0.06),
        (partial(train_group, steps=400, kl_in="ratio k3"), 0.06),
        (partial(train_ppo_exact, steps=200), 0.06),
        (partial(train_ppo_exact, steps=200, lam=0.95, whitening=True), 0.06),
    ],
    ids=["rloo", "grpo", "rloo k2", "rloo ratio k3", "ppo", "ppo whitened"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_short_sampled_runs_come_near(train, nearer_than, seed):
    _, history = train(WORLD, seed=seed)
    assert history["kl"][-1] < nearer_than < BEGINS


def forward_kl_optimum():
    """What maximises E_π[r] − β·KL(π_ref‖π): π = β·π_ref/(λ − r), λ found by bisection."""
    low = WORLD.rewards.max(-1, keepdim=True).values
    high = low + WORLD.beta
    for _ in range(100):
        middle = (low + high) / 2
        too_much = (WORLD.beta * REFERENCE.exp() / (middle - WORLD.rewards)).sum(-1, True) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (WORLD.beta * REFERENCE.exp() / (high - WORLD.rewards)).log()


def test_k3_in_the_loss_leads_to_the_optimum_of_another_objective():
    elsewhere = forward_kl_optimum()
    assert WORLD.distance(elsewhere) > 0.5
    policy, _ = train_group(WORLD, kl_in="k3", group=64, steps=800)
    log_probs = policy().detach()
    assert kl_from_logits(log_probs, elsewhere).mean() < 0.05
    assert WORLD.distance(log_probs) > 0.5


def test_deviations_in_the_reward_alone_overrule_the_kl_in_the_loss():
    plain, _ = train_group(WORLD, kl_in="k2", group=64, steps=600)
    divided, _ = train_group(
        WORLD, kl_in="k2", group=64, steps=600, advantages=group_relative_advantages
    )
    assert WORLD.distance(plain().detach()) < 0.05
    assert WORLD.distance(divided().detach()) > BEGINS


def sampled(a_prompt, seed):
    return sample_preferences(WORLD, a_prompt * 4, torch.Generator().manual_seed(seed))


def dpo_end(data, **options):
    return train_on_preferences(WORLD, data, **options)[1]["kl"][-1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_a_thousand_comparisons_a_prompt_dpo_ends_farther_than_it_began(seed):
    data = sampled(1_000, seed)
    _, history = train_on_preferences(WORLD, data)
    assert min(history["kl"]) < BEGINS / 2  # it sets out in the right direction
    assert history["kl"][-1] > 1.5 * BEGINS


def test_with_a_thousand_comparisons_a_prompt_more_steps_lead_farther_away():
    data = sampled(1_000, seed=0)
    assert dpo_end(data, steps=900) > 1.25 * dpo_end(data, steps=300)


def test_with_few_comparisons_dpo_ends_on_the_answers_that_happened_never_to_lose():
    """Nothing in the labels holds such an answer back, so its implicit reward rises without end."""
    data = sampled(250, seed=0)
    wins, losses = torch.zeros(4, 125), torch.zeros(4, 125)
    different = data.chosen != data.rejected
    for table, answers in ((wins, data.chosen), (losses, data.rejected)):
        table[data.prompt[different], answers[different]] = 1.0
    lucky = (wins > 0) & (losses == 0)
    policy, _ = train_on_preferences(WORLD, data)
    assert (policy().detach().exp() * lucky).sum(-1).min() > 0.8
    assert (OPTIMUM.exp() * lucky).sum(-1).max() < 0.5


@pytest.mark.parametrize(("a_prompt", "seed"), [(1_000, 0), (1_000, 1), (10_000, 0)])
def test_the_noise_of_the_labels_is_what_keeps_dpo_from_the_optimum(a_prompt, seed):
    data = sampled(a_prompt, seed)
    assert dpo_end(without_label_noise(WORLD, data)) < dpo_end(data) / 100


@pytest.mark.parametrize(("a_prompt", "nearer_than"), [(1_000, 0.8), (10_000, 0.2)])
def test_one_pass_over_the_comparisons_learns_no_noise_by_heart(a_prompt, nearer_than):
    assert dpo_end(sampled(a_prompt, seed=0), batch_size=256) < nearer_than < BEGINS


def test_one_pass_uses_each_comparison_once():
    data = sampled(25, seed=0)
    _, history = train_on_preferences(WORLD, data, batch_size=30)
    assert history["step"] == [0, 1, 2, 3]  # 100 comparisons: three batches of 30, ten left out
    first = Preferences(*(column[:90] for column in data))
    rest = Preferences(*(column.roll(10) for column in data))
    assert dpo_end(first, batch_size=30) == history["kl"][-1] != dpo_end(rest, batch_size=30)


def test_comparisons_spread_over_more_prompts_teach_less():
    """Nothing carries over from one prompt to another in a table: what counts is data a prompt."""
    ends = []
    for prompts in (1, 4):
        world = make_world(prompts=prompts)
        data = sample_preferences(world, 10_000, torch.Generator().manual_seed(0))
        ends.append(train_on_preferences(world, data)[1]["kl"][-1])
    assert 3 * ends[0] < ends[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_with_ten_thousand_comparisons_a_prompt_dpo_comes_near(seed):
    assert dpo_end(sampled(10_000, seed)) < 0.2


@pytest.mark.parametrize("train", [train_group, train_ppo_exact], ids=["group", "ppo"])
def test_a_seed_repeats_exactly_and_another_differs(train):
    runs = [train(WORLD, seed=seed, steps=20)[1]["kl"] for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_sampled_comparisons_repeat_exactly():
    draws = [
        sample_preferences(WORLD, 500, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    ]
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert draws[0].chosen.tolist() != draws[2].chosen.tolist()


def test_training_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="kl_in is 'k1'"):
        train_group(WORLD, kl_in="k1", steps=1)
    with pytest.raises(ValueError, match="steps is 0"):
        train_exact_gradient(WORLD, steps=0)
    with pytest.raises(ValueError, match="count is 0"):
        sample_preferences(WORLD, 0, torch.Generator())
    broken = World(WORLD.reference_logits, WORLD.rewards * math.nan, WORLD.beta, WORLD.length)
    with pytest.raises(ValueError, match="rewards"):
        train_group(broken, steps=1)


def test_the_table_has_a_row_for_each_method_and_amount_of_data():
    rows = exact_table(seeds=[0], quick=True)
    assert rows[0]["method"] == "reference" and rows[0]["kl"] == [pytest.approx(BEGINS)]
    ends = {(row["method"], row["data"]): row["kl"][0] for row in rows}
    assert len(ends) == len(rows)
    assert ends["RLOO", "sampled"] < 0.1 < BEGINS
    assert ends["DPO, five times the steps", "1,000 a prompt"] > BEGINS
    assert ends["DPO, stopped early", "1,000 a prompt"] < ends["DPO", "1,000 a prompt"]
    assert ends["DPO", "10,000 a prompt"] < 0.2 < ends["DPO", "1,000 a prompt"]
    assert all(len(row["curves"][0]) == len(row["steps"]) for row in rows)
    assert len(markdown(rows).splitlines()) == len(rows) + 2


def test_processes_of_their_own_give_the_table_the_same_numbers(monkeypatch):
    rloo = {"RLOO": (train_group, "as it stands")}
    monkeypatch.setattr(exact_table_module, "policy_gradient_methods", lambda: rloo)
    monkeypatch.setattr(exact_table_module, "preference_methods", lambda beta: {})
    alone, together = (exact_table([0, 1], quick=True, processes=n) for n in (1, 2))
    assert alone == together
    assert alone[-1]["kl"] == [
        train_group(WORLD, seed=seed, steps=200)[1]["kl"][-1] for seed in (0, 1)
    ]
