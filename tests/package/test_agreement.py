"""Agreement: κ against hand-worked numbers, printed examples and two other libraries."""

import math
import random

import pytest

from rlhf_minimal.agreement import choice_counts, cohens_kappa, fleiss_kappa, merge_labels
from rlhf_minimal.label_files import CHOICES, Comparison, Label, LabelFile

# Fleiss' example as it is often printed: 14 raters, 10 items, 5 categories; κ = 0.210.
FOURTEEN_RATERS = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def random_labels(seed, annotators=3, items=40):
    rng = random.Random(seed)
    truth = [rng.choice(CHOICES) for _ in range(items)]

    def seen(label):
        return label if rng.random() < 0.6 else rng.choice(CHOICES)

    return [[seen(label) for label in truth] for _ in range(annotators)]


def test_cohens_kappa_of_a_table_worked_by_hand():
    # 45 + 15 agree of 100: P_o = 0.6; P_e = 0.6 · 0.7 + 0.4 · 0.3 = 0.54; κ = 0.06 / 0.46.
    first = ["y"] * 60 + ["n"] * 40
    second = ["y"] * 45 + ["n"] * 15 + ["y"] * 25 + ["n"] * 15
    assert cohens_kappa(first, second) == pytest.approx(0.06 / 0.46, abs=1e-12)


def test_fleiss_kappa_of_the_printed_example():
    assert fleiss_kappa(FOURTEEN_RATERS) == pytest.approx(0.2099307, abs=5e-8)


@pytest.mark.parametrize(("second", "kappa"), [("abab", 1.0), ("baba", -1.0), ("aaaa", 0.0)])
def test_cohens_kappa_at_its_ends(second, kappa):
    assert cohens_kappa("abab", second) == kappa


def test_missing_labels_leave_the_item_out():
    assert cohens_kappa(["a", "b", None, "a"], ["a", "b", "b", None]) == 1.0


def test_one_category_alone_says_nothing():
    assert math.isnan(cohens_kappa("aaa", "aaa"))
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))


def test_fleiss_of_two_pools_what_cohen_keeps_apart():
    # "aabb" and "aaab": P_o = 3/4; Cohen's P_e = ½·¾ + ½·¼ = ½, Fleiss' (5/8)² + (3/8)² = 34/64.
    assert cohens_kappa("aabb", "aaab") == 0.5
    assert fleiss_kappa([[2, 0], [2, 0], [1, 1], [0, 2]]) == pytest.approx(14 / 30)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([[2, 1], [1, 1]], "same number"),
        ([[1, 0], [0, 1]], "2 or more"),
        ([[1.5, 0.5]], "whole"),
        ([[3, -1]], "whole"),
        ([], "shape"),
    ],
)
def test_fleiss_refuses(counts, reason):
    with pytest.raises(ValueError, match=reason):
        fleiss_kappa(counts)


def test_cohen_refuses():
    with pytest.raises(ValueError, match="4 labels but second 3"):
        cohens_kappa("aabb", "aab")
    with pytest.raises(ValueError, match="no item"):
        cohens_kappa([None], ["a"])


# seed: (scikit-learn 1.9.1's Cohen of two, statsmodels 0.15.0's Fleiss of four)
RECORDED = {
    0: (0.1713747645951036, 0.33798321314576196),
    1: (0.39906103286384975, 0.36865135177371466),
    2: (0.2920353982300885, 0.3421825443439445),
}


def counts_of_four(seed):
    labels = random_labels(seed, annotators=4)
    return [[items.count(c) for c in CHOICES] for items in zip(*labels, strict=True)]


@pytest.mark.parametrize("seed", RECORDED)
def test_numbers_recorded_from_other_libraries(seed):
    cohen, fleiss = RECORDED[seed]
    assert cohens_kappa(*random_labels(seed)[:2]) == pytest.approx(cohen, abs=1e-12)
    assert fleiss_kappa(counts_of_four(seed)) == pytest.approx(fleiss, abs=1e-12)


def test_scikit_learn_where_it_is_installed():
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(20):
        first, second, _ = random_labels(seed)
        theirs = metrics.cohen_kappa_score(first, second)
        assert cohens_kappa(first, second) == pytest.approx(theirs, abs=1e-12)


def test_statsmodels_where_it_is_installed():
    rater = pytest.importorskip("statsmodels.stats.inter_rater")
    for seed in range(20):
        theirs = rater.fleiss_kappa(counts_of_four(seed))
        assert fleiss_kappa(counts_of_four(seed)) == pytest.approx(theirs, abs=1e-12)


def question(number):
    return Comparison(str(number), f"{number} ?", "a", "b")


def labels(annotator, choices):
    return [
        Label(question(i), choice, "first", annotator) for i, choice in enumerate(choices) if choice
    ]


def test_files_of_several_students_merge(tmp_path):
    path = tmp_path / "mia.jsonl"
    for label in labels("mia", ["first", "tie", "second"]):
        LabelFile(path).append(label)
    table = merge_labels(path, labels("tom", ["first", None, "first"]))
    assert table == {
        "0": {"mia": "first", "tom": "first"},
        "1": {"mia": "tie"},
        "2": {"mia": "second", "tom": "first"},
    }
    assert choice_counts(table) == [[2, 0, 0], [1, 1, 0]]
    assert choice_counts(table, ["mia"]) == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_merging_refuses_one_name_twice_and_other_texts():
    with pytest.raises(ValueError, match="mia"):
        merge_labels(labels("mia", ["first"]), labels("mia", ["tie"]))
    other = [Label(Comparison("0", "0 ?", "a", "c"), "first", "first", "tom")]
    with pytest.raises(ValueError, match="different texts"):
        merge_labels(labels("mia", ["first"]), other)
