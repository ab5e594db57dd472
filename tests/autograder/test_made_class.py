"""A small class as ``benchmarks/grading.py`` makes it: every mark is as deserved."""

import sys
from pathlib import Path

import pytest

from autograder.grading import grade

ROOT = Path(__file__).resolve().parents[2]
KINDS = [
    "right", "half", "wrong", "exits while it is defined", "memory hog", "answers everything",
    "metadata stripped", "merge conflict", "in a folder",
]


@pytest.fixture(scope="module")
def makers():
    """The benchmark's two modules."""
    sys.path.append(str(ROOT / "benchmarks"))
    import grading
    import made_class

    yield made_class, grading
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("which", ["toy", "course"])
def test_each_gets_what_it_deserves(makers, course, tmp_path, which):
    made_class, benchmark = makers
    root = course if which == "toy" else ROOT
    students = made_class.make_class(root, tmp_path / "in", "01", seed=3, kinds=KINDS)
    said = []
    assert grade([tmp_path / "in"], tmp_path / "out", root=root, seed="3", say=said.append) == 0
    assert benchmark.compare(students, tmp_path / "out", "01") == []


def test_an_undeserved_mark_is_noticed(makers, course, tmp_path):
    made_class, benchmark = makers
    students = made_class.make_class(course, tmp_path / "in", "01", kinds=["right"])
    grade([tmp_path / "in"], tmp_path / "out", root=course, seed="3", say=lambda text: None)
    details = tmp_path / "out" / "details.csv"
    details.write_text(details.read_text().replace(",right,", ",wrong,", 1))
    (fault,) = benchmark.compare(students, tmp_path / "out", "01")
    assert "is wrong with" in fault


def test_a_class_holds_every_kind_of_trouble(makers):
    made_class, _ = makers
    assert len(made_class._kinds(200)) == 200
    assert set(made_class._kinds(200)) == {
        "right", "half", "wrong", *made_class.FUNCTIONS, *made_class.FILES
    }
