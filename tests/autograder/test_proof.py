"""The proof of the exercises' tests proves, and finds what is missing."""

import shutil

import pytest
import torch

from autograder.exercises import Exercise
from autograder.impostors import impostors_of
from autograder.judge import Judge
from autograder.mutants import mutants_of
from autograder.proof import prove, prove_exercise


def test_the_toy_course_is_proved(course):
    said = []
    assert prove(course, seeds=40, say=said.append) == 0, "\n".join(said)
    assert said[-1] == "5 exercises, 0 faults"
    assert any("over_all: killed by visible 0" in line for line in said)


def test_a_lesson_may_have_no_exercises_but_not_lose_them(course, tmp_path):
    shutil.copytree(course / "tests", tmp_path / "tests")
    (tmp_path / "solutions").mkdir()
    source, said = tmp_path / "solutions" / "03_project.py", []
    source.write_text("# %%\nprint('your own project')\n")
    assert prove(tmp_path, "03", say=said.append) == 0
    assert said == ["lesson 03 has no exercises: nothing to prove"]
    source.write_text("# %%\ndef f():\n    # SOLUTION\n    return 1\n    # END SOLUTION\n")
    with pytest.raises(FileNotFoundError, match="no lesson 03"):
        prove(tmp_path, "03")
    with pytest.raises(FileNotFoundError, match="no lesson 04"):
        prove(tmp_path, "04")


def mean(values, mask):
    return (values * mask).sum() / mask.sum()


def make(g):
    return dict(values=g.normal(5), mask=g.mask(5, p=0.5))


@pytest.fixture
def weak(runner, lessons):
    """An exercise to be spoiled, and its faults."""
    ex = Exercise("mean", "01.9", 1)
    ex.reference(mean)
    ex.cases(visible=2, fresh=4)(make)

    def faults():
        return " | ".join(prove_exercise(ex, Judge(runner, lessons, "x"), seeds=5).faults)

    return ex, faults


def test_a_sound_exercise_has_no_faults(weak):
    assert weak[1]() == ""


def test_a_mistake_that_is_right(weak):
    weak[0].mistake("Not wrong.")(lambda values, mask: mean(values, mask))
    assert "is killed by no visible case" in weak[1]()


def test_two_mistakes_that_are_one(weak):
    @weak[0].mistake("One.")
    def one(values, mask):
        return values.mean()

    @weak[0].mistake("Two.")
    def two(values, mask):
        return values.sum() / len(values)

    assert "cannot be told from" in weak[1]()


def test_a_tolerance_so_wide_that_zero_passes(weak):
    weak[0].tolerance = {"": (1e6, "none")}
    assert "a function that only gives zeros passes" in weak[1]()


def test_cases_that_never_change(weak):
    weak[0].cases(visible=2, fresh=4)(lambda g: dict(values=torch.arange(3.0), mask=torch.ones(3)))
    found = weak[1]()
    assert "answers recorded for other cases pass" in found
    assert "mutant survives" in found


def test_randomness_without_a_seed(weak):
    generator = torch.Generator()
    weak[0].reference(lambda values, mask: values.mean() + torch.rand(1, generator=generator))
    weak[0].cases(visible=2, fresh=4)(make)
    assert "does not agree with itself" in weak[1]()


def test_an_equivalent_that_is_none(weak):
    weak[0].equivalent("no such mutant", "because")
    assert "there is no such mutant: no such mutant" in weak[1]()


def test_a_tolerance_needs_a_reason():
    with pytest.raises(ValueError, match="the reason for it"):
        Exercise("f", "01.1", 1, tolerance=(1e-3, " "))


def documented(x, mask, scale=2.0):
    """A docstring with numbers: 1, 2, 3."""
    if x.dim() != 1:
        raise ValueError("x must have 1 dimension")
    return -(x.detach() * mask).sum(dim=0) / scale


def test_mutants_change_what_counts_and_only_that():
    texts = [mutant.description for mutant in mutants_of(documented)]
    assert "`x.detach() * mask` becomes `x.detach()`" in texts
    assert "`x.detach()` becomes `x`" in texts
    assert "`0` becomes `1`" in texts
    assert any(
        text.endswith("(x.detach() * mask).mean(dim=0) / scale`") or ".mean(" in text
        for text in texts
    )
    assert not any("2.0" in text or "ValueError" in text or "!=" in text for text in texts)


def test_impostors_know_only_the_form():
    values, mask = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
    said = {name: call(values, mask) for name, call in impostors_of(mean).items()}
    assert said["zeros"] == 0
    assert said["ones"] == 1
    assert torch.isnan(said["NaN"])
    assert said["nothing"] is None
    assert said["its first argument"] is values
