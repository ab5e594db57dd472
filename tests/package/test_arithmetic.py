"""What the toy of sums, its verifier and pass@k promise."""

import itertools
import math
import random

import pytest
import torch

from rlhf_minimal.arithmetic import (
    all_questions,
    arithmetic_tokenizer,
    carries,
    demonstration,
    demonstrations,
    prompt_of,
    scorer,
    working,
)
from rlhf_minimal.grpo import informative_groups
from rlhf_minimal.log_probs import pad_sequences
from rlhf_minimal.rollouts import Rollouts
from rlhf_minimal.verifiable import pass_at_k, verify_answer

TOKENIZER = arithmetic_tokenizer()


def rollouts_of(prompt, answers):
    """Rollouts with the given answers to one prompt; each ends with the end token."""
    start = TOKENIZER.encode(prompt)
    rows = [start + TOKENIZER.encode(answer, end=True) for answer in answers]
    tokens, attention_mask = pad_sequences(rows, TOKENIZER.pad_id)
    mask = attention_mask.clone()
    mask[:, : len(start)] = 0
    return Rollouts(tokens, attention_mask, mask)


# --- the toy ------------------------------------------------------------------------------------


def test_every_sum_of_two_two_digit_numbers_is_asked_once():
    questions = all_questions(seed=3)
    assert len(set(questions)) == len(questions) == 90 * 90
    assert questions != all_questions(seed=4) and questions == all_questions(seed=3)


def test_the_working_is_true_and_its_last_step_holds_the_tens():
    for a, b in all_questions()[:500]:
        for step in working(a, b).rstrip(" ,").split(" , "):
            left, _, result = step.partition(" = ")
            assert sum(map(int, left.split(" + "))) == int(result.replace(" ", ""))
        assert int(result.replace(" ", "")) == (a + b) // 10


def test_carries_are_counted():
    for a, b in all_questions()[:500]:
        steps = working(a, b)
        assert carries(a, b) == (steps.count("+") == 3) + (a + b >= 100)


def test_a_careful_demonstration_is_right_and_a_careless_one_is_not():
    rng = random.Random(0)
    for a, b in all_questions()[:200]:
        assert verify_answer(demonstration(a, b, rng), a + b) == 1.0
        assert verify_answer(demonstration(a, b, rng, no_brackets=1.0), a + b) == 0.0
        assert verify_answer(demonstration(a, b, rng, twice=1.0), a + b) == 0.0


def test_habits_come_as_often_as_asked():
    examples = demonstrations(all_questions()[:4000], TOKENIZER, no_brackets=0.3, twice=0.1)
    texts = [TOKENIZER.decode(answer) for _, answer in examples]
    for brackets, share in ((0, 0.3), (1, 0.6), (2, 0.1)):
        found = sum(text.count("[") == brackets for text in texts) / 4000
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / 4000)


def test_demonstrations_end_with_the_end_token_and_repeat_with_their_seed():
    first, again = (demonstrations(all_questions()[:9], TOKENIZER, seed=1) for _ in range(2))
    assert first == again
    assert all(answer[-1] == TOKENIZER.end_id for _, answer in first)


def test_the_scorer_works_the_solution_out_from_the_prompt():
    answers = ["[ 8 5 ]", "[ 8 4 ]", "7 + 8 = 1 5 , 3 + 4 + 1 = 8 , [ 8 5 ]", "8 5"]
    score = scorer(TOKENIZER)
    assert score(rollouts_of(prompt_of(37, 48), answers)).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_the_scorer_takes_another_reward():
    seen = []
    score = scorer(TOKENIZER, lambda text, solution: seen.append((text, solution)) or 0.5)
    assert score(rollouts_of(prompt_of(60, 48), ["[ 1 ] ["])).tolist() == [0.5]
    assert seen == [("[ 1 ] [", 108)]


# --- the verifier -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[ 8 5 ]", "[85]", "7 , [ 8 5 ]", "[ 0 8 5 ]", " [ 8 5 ] "])
def test_right_answers_pass(text):
    assert verify_answer(text, 85) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "", "[", "]", "[ ]", "] 8 5 [", "8 5", "[ 8 5", "8 5 ]", "[ 8 4 ]", "[ 1 8 5 ]",
        "[ 8 5 ] ,",
        "[ 8 4 ] [ 8 5 ]", "[ 8 5 ] [ 8 5 ]", "[ 8 4 , 8 5 ]", "[ 3 7 + 4 8 ]", "[ + 8 5 ]",
        "[ 8 5 . 0 ]", "[ 8_5 ]", "[ \u0668\u0665 ]", "[ [ 8 5 ] ]", "[ 8 5 = 8 5 ]", "[ -85 ]",
    ],
)
def test_everything_else_fails_and_nothing_raises(text):
    assert verify_answer(text, 85) == 0.0


# --- pass@k -------------------------------------------------------------------------------------


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    n = 6
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        share = sum(map(any, subsets)) / len(subsets)
        assert pass_at_k(torch.tensor([c]), n, k).item() == pytest.approx(share, abs=1e-6)


def test_pass_at_k_is_unbiased():
    p, n, k = 0.2, 7, 3
    c = torch.arange(n + 1)
    chance = torch.tensor([math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)])
    assert (chance * pass_at_k(c, n, k)).sum().item() == pytest.approx(1 - 0.8**3, abs=1e-6)


def test_pass_at_k_with_a_thousand_samples():
    exact = 1 - math.comb(990, 100) / math.comb(1000, 100)
    assert pass_at_k(torch.tensor([10]), 1000, 100).item() == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    "correct, samples, k, word",
    [([1], 4, 5, "k is 5"), ([5], 4, 2, "correct"), ([-1], 4, 2, "correct"), ([1], 4, 0, "k")],
)
def test_impossible_counts_are_refused(correct, samples, k, word):
    with pytest.raises(ValueError, match=word):
        pass_at_k(torch.tensor(correct), samples, k)


# --- silent groups ------------------------------------------------------------------------------


def test_groups_of_equal_rewards_are_silent_whatever_their_mean_rounds_to():
    values = torch.linspace(-2.0, 2.0, 401)[:, None]
    for size in range(2, 20):
        assert not informative_groups(values.expand(-1, size)).any()


def test_one_different_reward_is_enough():
    for place in range(5):
        rewards = torch.full((1, 5), 0.2)
        rewards[0, place] += 1e-6
        assert informative_groups(rewards).tolist() == [True]
