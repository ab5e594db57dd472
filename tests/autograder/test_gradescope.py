"""Gradescope: the zip that is packed, and marking in a folder laid out as it lays it out."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from autograder.gradescope import mark, pack

ROOT = Path(__file__).resolve().parents[2]
RIGHT = "def weighted_mean(values, mask): return (values * mask).sum() / mask.sum()\n"
STUB = "def weighted_mean(values, mask):\n    raise NotImplementedError('write it')\n"
TOTAL = "def running_total(values): return values.cumsum(-1)\n"
EXITS = "import os\ndef weighted_mean(values, mask): os._exit(0)\n"
KEYS = {
    "score", "output", "output_format", "test_output_format", "test_name_format", "visibility",
    "stdout_visibility", "execution_time", "tests",
}
TEST_KEYS = {"name", "number", "score", "max_score", "output", "visibility", "status"}


def notebook(*sources):
    return json.dumps({"cells": [{"cell_type": "code", "source": text} for text in sources]})


SUBMISSIONS = {
    "right": ({"mine.ipynb": notebook(RIGHT, TOTAL)}, [2, 1, 0, 0]),
    "half done": ({"mine.ipynb": notebook(STUB, TOTAL)}, [0, 1, 0, 0]),
    "hostile": ({"mine.ipynb": notebook(EXITS, TOTAL)}, [0, 1, 0, 0]),
    "nothing": ({}, [0, 0, 0, 0]),
    "no notebook": ({"notes.txt": "sorry"}, [0, 0, 0, 0]),
    "broken": ({"mine.ipynb": "{"}, [0, 0, 0, 0]),
    "two notebooks": ({"a.ipynb": notebook(RIGHT), "b.ipynb": notebook(TOTAL)}, [2, 1, 0, 0]),
    "a stub beside it": ({"a.ipynb": notebook(RIGHT), "b.ipynb": notebook(STUB)}, [2, 0, 0, 0]),
}


def lay_out(folder, files):
    (folder / "submission").mkdir()
    for name, text in files.items():
        (folder / "submission" / name).write_text(text)
    return folder


@pytest.fixture
def walls(runner):
    if runner.level == 0:
        pytest.skip("needs isolation level 1, which this machine does not allow")


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_results_are_as_documented_and_as_deserved(walls, course, tmp_path, name):
    files, points = SUBMISSIONS[name]
    assert mark(course, "01", lay_out(tmp_path, files), seed="1", say=print) == 0
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert set(results) == KEYS
    assert all(set(test) == TEST_KEYS for test in results["tests"])
    assert [test["score"] for test in results["tests"]] == points
    assert [test["max_score"] for test in results["tests"]] == [2, 1, 3, 2]
    assert results["score"] == sum(points)
    assert results["stdout_visibility"] == "hidden"
    assert results["output_format"] == results["test_output_format"] == "text"


def test_below_level_1_nothing_is_marked(course, tmp_path):
    said = []
    files = {"mine.ipynb": notebook(RIGHT)}
    assert mark(course, "01", lay_out(tmp_path, files), plan="none", say=said.append) == 1
    assert "not graded" in said[1]
    assert not (tmp_path / "results" / "results.json").exists()


def test_our_own_fault_writes_no_results(walls, course, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("autograder.gradescope.grade_entry", broken)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text("old")
    said = []
    files = {"mine.ipynb": notebook(RIGHT)}
    assert mark(course, "01", lay_out(tmp_path, files), say=said.append) == 1
    assert "the disk is full" in said[1]
    assert not (tmp_path / "results" / "results.json").exists()


def test_the_zip_holds_what_marking_needs_and_no_solutions(tmp_path):
    pack(ROOT, "1", tmp_path / "one.zip", say=lambda text: None)
    pack(ROOT, "1", tmp_path / "two.zip", say=lambda text: None)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        names = set(archive.namelist())
        assert archive.read("lesson") == b"01\n"
        for script in ("setup.sh", "run_autograder"):
            assert archive.getinfo(script).external_attr >> 16 & 0o111 == 0o111
    assert {"course/constraints.txt", "course/autograder/box.py"} <= names
    assert any(name.startswith("course/tests/exercises/test_01_") for name in names)
    assert not [name for name in names if "solutions/" in name or "tests/autograder" in name]


def test_run_autograder_from_the_unpacked_zip(walls, tmp_path):
    """The script itself, with this Python in place of the one that ``setup.sh`` would make."""
    pack(ROOT, "01", tmp_path / "course.zip", say=lambda text: None)
    lay_out(tmp_path, {"x.ipynb": notebook("def normalise(values):\n    return values\n")})
    with zipfile.ZipFile(tmp_path / "course.zip") as archive:
        archive.extractall(tmp_path / "source")
    python = tmp_path / "source" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    script = tmp_path / "source" / "run_autograder"
    done = subprocess.run(["bash", str(script)], env={"AUTOGRADER_BASE": str(tmp_path),
                          "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["score"] == 0
    assert "✗ 01.7 normalise" in results["tests"][-1]["output"]
