"""What of a test file reaches the box."""

import textwrap

import pytest

from autograder.lessons import lesson_of, load_course, load_lesson, modules_of, source_of

FILE = '''
import math
from collections import Counter
from autograder import exercise, raised

TABLE = dict(zip("ab", range(2)))

def helper(x):
    return math.sqrt(x) + TABLE["a"]

root = exercise("root", number="03.1", points=1)

@root.reference
def right(x):
    return math.sqrt(x)

@root.cases(visible=1, fresh=2)
def cases(g):
    return dict(x=g.uniform(1, 2))

@root.probe
def probe(answer, case):
    return dict(side="right", cases="wrong", root=answer.root(case["x"]), own=helper(4.0))

@root.mistake("Not the root.")
def wrong(x):
    return x
'''


@pytest.fixture
def lesson(tmp_path):
    folder = tmp_path / "tests" / "exercises"
    folder.mkdir(parents=True)
    path = folder / "test_03_roots.py"
    path.write_text(textwrap.dedent(FILE))
    return load_lesson(path)


def test_a_probe_takes_along_what_it_needs_and_no_answer(lesson):
    ex = lesson.exercises[0]
    text = "\n".join(s["source"] for s in source_of(ex.probes[0].function, ex.file))
    space = {}
    exec(text, space)
    assert space["helper"](4.0) == 2.0
    assert callable(space["probe"])
    for secret in ("def right", "def wrong", "def cases", "exercise(", "Not the root"):
        assert secret not in text


def test_a_probe_s_imports_are_known(lesson):
    assert "math" in modules_of(lesson.exercises[0])


def test_two_exercises_of_one_name_in_a_lesson_are_an_error(tmp_path):
    folder = tmp_path / "tests" / "exercises"
    folder.mkdir(parents=True)
    line = "exercise('f', number='04.{}', points=1)\n"
    text = "from autograder import exercise\na = " + line.format(1) + "b = " + line.format(2)
    (folder / "test_04_twice.py").write_text(text)
    with pytest.raises(ValueError, match="declared twice"):
        load_course(tmp_path)


def test_a_tie_between_lessons_is_decided_by_the_file_s_number(course):
    lessons = load_course(course)
    assert lesson_of({"weighted_mean", "longest_word"}, lessons, "02_mine.ipynb").number == "02"
    assert lesson_of({"weighted_mean", "longest_word"}, lessons, "1_mine.ipynb").number == "02"
    assert lesson_of({"other"}, lessons, "notes.ipynb") is None
