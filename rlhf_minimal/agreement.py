"""Do annotators agree? Cohen's κ for two, Fleiss' κ for many, and merging their files.

Raw agreement flatters: two people who both say "left" nine times in ten agree on 82% of the pairs
without reading them. κ = (P_o − P_e)/(1 − P_e) is the agreement beyond that chance: 1 is perfect,
0 is chance, and below 0 is less than chance.

Follows Cohen 1960, "A coefficient of agreement for nominal scales", and Fleiss 1971, "Measuring
nominal scale agreement among many raters".

Leaves out: weighted κ (graded labels), Krippendorff's α (any pattern of missing labels).
"""

import math
from collections import Counter

import torch

from rlhf_minimal.label_files import CHOICES, Label, read_labels

__all__ = ["choice_counts", "cohens_kappa", "fleiss_kappa", "merge_labels"]


def cohens_kappa(first, second) -> float:
    """Agreement of two annotators beyond chance, (P_o − P_e)/(1 − P_e).

    P_o is the share of items on which both say the same; P_e = Σ_c p_first(c)·p_second(c) is what
    two would reach who draw, each from their own shares of the categories, without looking.

    Args:
        first, second: a label an item, in the same order; ``None`` where one gave none. Items that
            lack a label are left out.

    Returns:
        κ in [−1, 1]; NaN where both used one and the same category only: then P_e = 1, and
        agreement says nothing.

    Raises:
        ValueError: the lengths differ, or no item has both labels.

    >>> first = ["yes"] * 25 + ["no"] * 25
    >>> second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    >>> round(cohens_kappa(first, second), 6)  # P_o = 0.7, P_e = 0.5 · 0.6 + 0.5 · 0.4 = 0.5
    0.4
    """
    first, second = list(first), list(second)
    if len(first) != len(second):
        raise ValueError(
            f"first has {len(first)} labels but second {len(second)}; give one an item"
        )
    both = [two for two in zip(first, second, strict=True) if None not in two]
    if not both:
        raise ValueError("no item has a label of both annotators; κ needs one or more")
    size = len(both)
    observed = sum(a == b for a, b in both) / size
    shares_first, shares_second = Counter(a for a, _ in both), Counter(b for _, b in both)
    chance = sum(shares_first[c] * shares_second[c] for c in shares_first) / size**2
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def fleiss_kappa(counts) -> float:
    """Agreement of n annotators beyond chance, from how many chose each category.

    P_o is the mean over items of the share of annotator pairs that agree,
    Σ_c n_c(n_c − 1)/(n(n − 1)); P_e = Σ_c p_c² with p_c the share of all labels that are c. With
    two annotators it is not Cohen's κ: chance is taken from their pooled shares.

    Args:
        counts: ``(N, C)``, items by categories; each row sums to the same n of 2 or more. The
            annotators need not be the same people for each item.

    Returns:
        κ in [−1, 1]; NaN where only one category was ever used.

    Raises:
        ValueError: another shape, a negative or broken count, rows of different sums.

    >>> round(fleiss_kappa([[2, 0], [1, 1], [0, 2], [2, 0]]), 6)  # P_o = 3/4, P_e = 34/64
    0.466667
    """
    counts = torch.as_tensor(counts, dtype=torch.float64)
    if counts.dim() != 2 or counts.shape[0] == 0:
        raise ValueError(f"counts has shape {tuple(counts.shape)}; it must be (items, categories)")
    if not bool(((counts >= 0) & (counts == counts.round())).all()):
        raise ValueError("counts must be whole numbers, 0 or more: how many annotators chose what")
    labels = counts.sum(-1)
    if not bool((labels == labels[0]).all()) or labels[0] < 2:
        raise ValueError(
            f"items have between {int(labels.min())} and {int(labels.max())} labels; Fleiss' κ "
            "needs the same number, 2 or more, for each: leave the others out"
        )
    n = labels[0]
    observed = (counts * (counts - 1)).sum(-1).mean() / (n * (n - 1))
    chance = (counts.sum(0) / counts.sum()).square().sum()
    # A category that all always chose leaves 0/0.
    return ((observed - chance) / (1 - chance)).item() if chance < 1 else math.nan


def merge_labels(*sources) -> dict[str, dict[str, str]]:
    """Several students' labels as one table: comparison id → annotator → choice.

    Args:
        sources: files (paths) or lists of labels, one a student.

    Returns:
        ``{"0": {"mia": "first", "tom": "tie"}, ...}``, ids in the order in which they first came. A
        comparison that somebody did not label lacks their name.

    Raises:
        ValueError: one name stands in two sources, or one id means different texts.
    """
    table: dict[str, dict[str, str]] = {}
    texts: dict[str, tuple] = {}
    names: set[str] = set()
    for source in sources:
        labels: list[Label] = source if isinstance(source, list) else read_labels(source)[0]
        here = {label.annotator for label in labels}
        if names & here:
            raise ValueError(f"{sorted(names & here)} stand in two sources; give each one name")
        names |= here
        for label in labels:
            identity = label.comparison.id
            if texts.setdefault(identity, label.comparison) != label.comparison:
                raise ValueError(f"the id {identity!r} means different texts in these files")
            table.setdefault(identity, {})[label.annotator] = label.choice
    return table


def choice_counts(table, annotators=None, categories=CHOICES) -> list[list[int]]:
    """:func:`fleiss_kappa`'s counts, of the comparisons that all of the annotators labelled.

    >>> choice_counts({"0": {"mia": "first", "tom": "tie"}, "1": {"mia": "first"}})
    [[1, 0, 1]]
    """
    wanted = set(annotators or {name for row in table.values() for name in row})
    rows = [[row[name] for name in wanted] for row in table.values() if wanted <= row.keys()]
    return [[row.count(category) for category in categories] for row in rows]
