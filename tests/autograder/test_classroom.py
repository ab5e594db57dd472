"""GitHub: the workflow for a class, its shell lines run as a runner would, and the summary."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = yaml.safe_load((ROOT / "classroom" / "grade.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in WORKFLOW["jobs"]["grade"]["steps"] if "name" in step}
HEAD = "submission,lesson,number,exercise,verdict,points,out_of,mistake,seconds\n"
ROWS = "a,01,01.1,f,right,2,2,,0.1\na,01,01.2,g,ungraded,,3,,0.1\n"


def run(step, folder, **more):
    environment = {**os.environ, **WORKFLOW["env"], **more, "GITHUB_STEP_SUMMARY": "summary.md"}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[step]["run"]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def place(tmp_path):
    """A runner's folder: the student's repository, the course, a ``sudo`` that does nothing."""
    (tmp_path / "student" / "lessons").mkdir(parents=True)
    shutil.copytree(ROOT / "classroom", tmp_path / "course" / "classroom")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for path in (tmp_path / "bin").iterdir():
        path.chmod(0o755)
    return tmp_path


def show(place, **more):
    done = run("Show", place, PATH=f"{place}/bin:{os.environ['PATH']}", **more)
    return done.returncode, (place / "summary.md").read_text(encoding="utf-8")


def test_notebooks_are_collected_and_nothing_else(place):
    for name in ("my notebook.ipynb", "lessons/01 (2).ipynb", "helper.py", "deep.txt"):
        (place / "student" / name).write_text("{}")
    assert run("Collect", place, STUDENT="hw1-ada").returncode == 0
    found = {path.name for path in (place / "submissions" / "hw1-ada").rglob("*.*")}
    assert found == {"my notebook.ipynb", "01 (2).ipynb"}


def test_no_notebook_is_no_failure_of_the_collection(place):
    assert run("Collect", place, STUDENT="hw1-ada").returncode == 0
    assert (place / "submissions" / "hw1-ada").is_dir()


@pytest.mark.parametrize("least, code", [("", 0), ("2", 0), ("2.5", 1)])
def test_the_run_fails_only_where_asked(place, least, code):
    (place / "marks").mkdir()
    (place / "marks" / "details.csv").write_text(HEAD + ROWS)
    found, text = show(place, AT_LEAST=least)
    assert found == code
    assert "## 2 of 5 points" in text
    assert "| ✓ | 01.1 `f` | right | 2 of 2 |" in text
    assert "| ? | 01.2 `g` | ungraded | none yet of 3 |" in text


def test_a_grader_that_never_began_is_said(place):
    code, text = show(place)
    assert code == 0
    assert "Nothing was graded" in text


def test_grading_is_official_and_the_course_pinned():
    assert "--official" in STEPS["Grade"]["run"]
    assert STEPS["The course"]["with"]["ref"] == "${{ env.COURSE_REF }}"
    assert WORKFLOW["permissions"] == {"contents": "read"}
