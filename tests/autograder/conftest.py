"""Shared by the autograder's tests: a toy course, and one runner for all tests of a process."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COURSE = HERE / "course"
collect_ignore = ["course", "hostile"]


@pytest.fixture(scope="session")
def course():
    """The root of the toy course, its package importable."""
    if str(COURSE) not in sys.path:
        sys.path.append(str(COURSE))
    return COURSE


@pytest.fixture(scope="session")
def runner(course):
    """A zygote with the strongest walls that this machine allows."""
    from autograder.grading import course_runner

    with course_runner(course) as found:
        yield found


@pytest.fixture(scope="session")
def lessons(course):
    from autograder.lessons import load_course

    return load_course(course)


@pytest.fixture(scope="session")
def judge(runner, lessons):
    from autograder.judge import Judge

    return Judge(runner, lessons, seed="tests")
