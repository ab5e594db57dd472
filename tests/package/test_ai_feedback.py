"""AI feedback: verdicts out of untidy texts, biases counted, preferences made of verdicts."""

import random

import pytest
import torch

from rlhf_minimal.ai_feedback import (
    consistent_verdicts,
    pairwise_prompt,
    parse_score,
    parse_verdict,
    position_bias,
    self_preference,
    self_rewarding_pairs,
    single_prompt,
    soft_pairwise_loss,
    soft_preference,
    swap_average,
    verbosity_bias,
)
from rlhf_minimal.pairs import TokenPair
from rlhf_minimal.reward_model import pairwise_loss


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[A]]", "A"),
        ("``` [[ b ]] ```", "B"),
        ("First I thought [[B]], but no: [[A]]", "A"),
        ("Answer B is longer, still: [[tie]]", "tie"),
        ("Verdict: [[C]]", "tie"),
        ("The better answer is (A).", "A"),
        ("The better answer is **B**.", "B"),
        ("the better answer is (a)", "A"),
        ("Winner: Assistant B", "B"),
        ("I prefer answer A because it is right", "A"),
        ("I choose B because it ends", "B"),
        ("Verdict: A because it names all", "A"),
        ("**Answer:** A", "A"),
        ("Answer A is better than Answer B.", "A"),
        ("B is clearly better", "B"),
        ("A wins", "A"),
        ("(B)", "B"),
        ("A.", "A"),
        ("Tie", "tie"),
        ("My verdict: tie", "tie"),
        ("A good answer should be short.", None),
        ("Answer: A good cook would bake it.", None),
        ("A is not better", None),
        ("I do not prefer A", None),
        ("Answer (A) is right, answer (B) is wrong", None),
        ("Answer: A\nAnswer: B", None),
        ("Both (A) and (B) fail", None),
        ("sure , you need dough", None),
        ("", None),
    ],
)
def test_verdicts_in_untidy_texts(text, verdict):
    assert parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("[[4]]", 4),
        ("[[2]], on second thought [[3]]", 3),
        ("Grade: [[ 2 / 5 ]]", 2),
        ("Score: 3", 3),
        ("**Score**: 4/5", 4),
        ("Score: 4.", 4),
        ("It names 3 things. Score: 2", 2),
        ("Accuracy score: 3. Overall score: 4", 4),
        ("The score I would give this is 4", 4),
        ("I give 3 out of 5", 3),
        ("4", 4),
        ("4.5", 4.5),
        ("4,5", 4.5),
        ("0", 0),
        ("score 9", None),
        ("Score: 45", None),
        ("Score: -1", None),
        ("9/10", None),
        ("3 of 4 steps", None),
        ("Score: 3-4", None),
        ("1. It is good. 2. It is short.", None),
        ("Score: none", None),
        ("", None),
    ],
)
def test_scores_in_untidy_texts(text, score):
    assert parse_score(text) == score


def test_another_scale():
    assert parse_score("I give 7/10", high=10) == 7
    assert parse_score("Score: 0", low=1, high=10) is None


def test_prompts_hold_their_texts_and_are_parsed_as_no_verdict():
    texts = dict(question="what {is} tea ?", first="<a>", second="{b}")
    prompt = pairwise_prompt(**texts)
    assert all(text in prompt for text in texts.values())
    assert "known to be right" not in prompt
    assert "to compare with: leaves" in pairwise_prompt(**texts, reference="leaves")
    single = single_prompt("what is tea ?", "a {drink}", reference="leaves", high=10)
    assert "from 0 (worst) to 10 (best)" in single and "a {drink}" in single and "leaves" in single


def test_a_judge_that_always_says_a_is_all_position():
    bias = position_bias(["A"] * 4, ["A"] * 4)
    assert bias == (0.0, 1.0, 0.0, 0.0)
    assert consistent_verdicts(["A"] * 4, ["A"] * 4) == [None] * 4


def test_a_judge_that_reads_is_consistent():
    verdicts, swapped = ["A", "B", "tie"], ["B", "A", "tie"]
    assert position_bias(verdicts, swapped).consistent == 1.0
    assert consistent_verdicts(verdicts, swapped) == verdicts


@pytest.mark.parametrize(
    ("verdict", "swapped", "kind"),
    [
        ("A", "A", "first"),
        ("B", "B", "second"),
        ("A", "tie", "first"),
        ("tie", "A", "first"),
        ("tie", "B", "second"),
        ("B", "A", "consistent"),
        ("tie", None, "unreadable"),
        (None, None, "unreadable"),
    ],
)
def test_each_pair_counts_once(verdict, swapped, kind):
    bias = position_bias([verdict], [swapped])
    assert bias._asdict() == {name: float(name == kind) for name in bias._fields}
    assert (consistent_verdicts([verdict], [swapped]) == [verdict]) == (kind == "consistent") or (
        verdict is None
    )


@pytest.mark.parametrize("measure", [position_bias, consistent_verdicts])
def test_bad_verdicts_are_refused(measure):
    with pytest.raises(ValueError, match="2 verdicts and 1"):
        measure(["A", "B"], ["A"])
    with pytest.raises(ValueError, match="'a' is no verdict"):
        measure(["a"], ["A"])
    with pytest.raises(ValueError, match="0 verdicts"):
        measure([], [])


def test_soft_preference_does_not_depend_on_what_else_could_be_said():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    from_logits = soft_preference(logits[:, 2], logits[:, 4])
    p = logits.softmax(-1)
    torch.testing.assert_close(from_logits, p[:, 2] / (p[:, 2] + p[:, 4]))
    torch.testing.assert_close(from_logits, soft_preference(p[:, 2].log(), p[:, 4].log()))


def test_swapping_averages_the_place_away():
    fair = torch.tensor([0.5, -1.0])
    place = 2.0
    p, swapped = torch.sigmoid(fair + place), torch.sigmoid(-fair + place)
    assert ((swap_average(p, swapped) > 0.5) == (fair > 0)).all()
    torch.testing.assert_close(swap_average(p, swapped) + swap_average(swapped, p), torch.ones(2))


def test_hard_soft_labels_are_bradley_terry():
    first, second = torch.tensor([1.0, 0.2]), torch.tensor([0.5, 0.9])
    torch.testing.assert_close(
        soft_pairwise_loss(first, second, torch.ones(2)), pairwise_loss(first, second)
    )


def test_soft_labels_are_met_where_the_reward_difference_is_their_log_odds():
    p = torch.tensor([0.8])
    difference = torch.logit(p).requires_grad_()
    soft_pairwise_loss(difference, torch.zeros(1), p).backward()
    assert difference.grad.abs().item() < 1e-6
    with pytest.raises(ValueError, match="between 0 and 1"):
        soft_pairwise_loss(p, p, p + 1)


def test_self_preference_is_more_than_winning():
    assert self_preference([1.0, 1.0, 0.0], [1.0, 1.0, 0.0])["mean"] == 0.0
    assert self_preference([1.0, 1.0, 0.0], [0.0, 1.0, 0.0])["mean"] == pytest.approx(1 / 3)
    assert verbosity_bias([0.5, 1.0])["mean"] == 0.75


def test_best_and_worst_become_a_pair():
    candidates = [[[1], [2], [3]], [[4], [5], [6]], [[7], [7], [8]]]
    scores = [[1.0, 3.0, 2.0], [2.0, 2.0, 2.0], [3.0, 1.0, 2.0]]
    pairs = self_rewarding_pairs([[10], [11], [12]], candidates, scores)
    assert pairs == [TokenPair([10], [2], [1])]  # a tie; the same answer twice


def test_several_judgings_are_averaged():
    scores = [[[5.0, 0.0, 0.0], [2.0, 2.0, 2.0]]]  # the first has the best single grade
    assert self_rewarding_pairs([[1]], [[[2], [3]]], scores) == [TokenPair([1], [3], [2])]


@pytest.mark.parametrize("scores", [[1.0, 2.0], [[1.0, 2.0], [1.0, 2.0]], [[1.0, float("nan")]]])
def test_scores_that_do_not_fit_are_refused(scores):
    with pytest.raises(ValueError, match="scores"):
        self_rewarding_pairs([[1]], [[[2], [3]]], scores)


def test_no_parser_ever_fails():
    rng = random.Random(0)
    alphabet = "AB()[] :./\n-19score verdictTie*"
    for _ in range(3000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
        assert parse_verdict(text) in ("A", "B", "tie", None)
        score = parse_score(text)
        assert score is None or 0 <= score <= 5
