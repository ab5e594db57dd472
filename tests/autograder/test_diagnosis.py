"""The words that a wrong answer gets."""

import pytest
import torch

from autograder.diagnosis import explain
from autograder.exercises import Exercise
from autograder.expectation import Expectation, gather


def said(reference, wrong, make, probe=None):
    """What is said when ``wrong`` stands in for ``reference``."""
    ex = Exercise("f", "01.1", 1)
    ex.reference(reference)
    ex.cases(visible=3, fresh=3)(make)
    if probe:
        ex.probe(probe)
    expectation = Expectation(ex, "words")
    found = gather(ex, wrong, expectation.cases)
    assert not expectation.agrees(found)
    return explain(ex, expectation, found)


def pair(g):
    n = g.integer(3, 9)
    return dict(a=g.normal(n), b=g.normal(n), scale=g.uniform(0.2, 0.7))


def mean(a, b, scale):
    return scale * (a * b).mean()


def product(a, b, scale):
    return a * b


def outer(a, b, scale):
    return torch.outer(a, b[:-1])


PATTERNS = {
    "a sum where a mean is asked": (mean, lambda a, b, scale: scale * (a * b).sum()),
    "your batch": (mean, lambda a, b, scale: scale * (a * b).sum()),
    "a mean where a sum is asked": (
        lambda a, b, scale: (a * b).sum(), lambda a, b, scale: (a * b).mean(),
    ),
    "`scale`: multiplied by it once too seldom": (mean, lambda a, b, scale: (a * b).mean()),
    "`scale`: multiplied by it once too often": (
        mean, lambda a, b, scale: scale**2 * (a * b).mean(),
    ),
    "right to three digits and not exact": (
        mean, lambda a, b, scale: mean(a, b, scale) * (1 + 1e-4),
    ),
    "right but for its sign": (mean, lambda a, b, scale: -mean(a, b, scale)),
    "one half": (mean, lambda a, b, scale: mean(a, b, scale) / 2),
    "logarithm to base 2": (
        lambda a, b, scale: (a**2 + 1).log().sum(), lambda a, b, scale: (a**2 + 1).log2().sum(),
    ),
    "off by the same number everywhere": (product, lambda a, b, scale: a * b + 1),
    "it is transposed": (outer, lambda a, b, scale: outer(a, b, scale).T),
    "every number stands one step too late": (
        product, lambda a, b, scale: torch.cat([torch.zeros(1), (a * b)[:-1]]),
    ),
    "one step too early": (
        product, lambda a, b, scale: torch.cat([(a * b)[1:], torch.zeros(1)]),
    ),
    "runs backwards": (product, lambda a, b, scale: (a * b).flip(0)),
    "in another order": (product, lambda a, b, scale: (a * b).sort().values),
    "an absolute value": (product, lambda a, b, scale: (a * b).abs()),
    "probabilities for log-probabilities": (
        lambda a, b, scale: a.log_softmax(0), lambda a, b, scale: a.softmax(0),
    ),
    "a mean is missing": (mean, lambda a, b, scale: scale * a * b),
    "averages or sums over everything": (product, lambda a, b, scale: (a * b).mean()),
    "a dimension too many": (product, lambda a, b, scale: a * b[:, None]),
    "dtype torch.float64": (product, lambda a, b, scale: (a * b).double()),
    "is NaN": (product, lambda a, b, scale: a * b / 0 * 0),
    "is a `return` missing": (product, lambda a, b, scale: None),
    "a float; a tensor of shape () is asked": (mean, lambda a, b, scale: mean(a, b, scale).item()),
    "changes its argument `a` in place": (product, lambda a, b, scale: a.mul_(b).clone()),
    "has 1 entries; 2 are asked": (lambda a, b, scale: [a, b], lambda a, b, scale: [a]),
    "`value.y` is missing": (lambda a, b, scale: {"x": a, "y": b}, lambda a, b, scale: {"x": a}),
}


@pytest.mark.parametrize("words", PATTERNS)
def test_pattern_is_named(words):
    reference, wrong = PATTERNS[words]
    assert words in said(reference, wrong, pair)["headline"]


def test_a_cut_gradient_is_named():
    def probe(answer, case):
        from autograder import grads, leaves

        x = leaves(case)
        return dict(value=(out := answer.f(**x)), grad=grads(out, x))

    words = said(mean, lambda a, b, scale: mean(a, b, scale).detach(), pair, probe)
    assert "carries no gradient" in words["headline"]
    half = said(mean, lambda a, b, scale: scale * (a.detach() * b).mean(), pair, probe)
    assert "its gradient is not" in half["hints"][0]


def test_the_case_can_be_pasted():
    words = said(product, lambda a, b, scale: a + b, pair)
    space = {"f": product}
    exec(words["case"].replace("\nf(", "\nanswer = f("), space)
    assert words["expected"].startswith("value = tensor(")
    assert torch.allclose(
        space["answer"], eval(words["expected"][8:], {"tensor": torch.tensor}), atol=1e-3
    )


def test_the_smallest_failing_case_is_shown():
    words = said(product, lambda a, b, scale: a + b, lambda g: dict(
        a=(x := g.normal(g.integer(2, 30))), b=x + 1, scale=1.0))
    shown = words["case"].count(",")
    assert shown < 30


def test_numbers_that_print_alike_are_said_to_differ():
    words = said(product, lambda a, b, scale: a * b + 1e-5 * torch.arange(len(a)), pair)
    assert words["expected"] == words["got"]
    assert any(hint.startswith("They print alike and are ") for hint in words["hints"])
    assert not any("alike" in hint for hint in said(product, lambda a, b, scale: a, pair)["hints"])


def test_a_single_number_cannot_be_shifted():
    def one(g):
        return dict(a=g.normal(1), b=g.normal(1), scale=g.uniform(0.2, 0.7))

    text = said(product, lambda a, b, scale: a * b + torch.inf, one)
    assert "shifted" not in str(text)
