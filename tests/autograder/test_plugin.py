"""The pytest door."""

import csv
import subprocess
import sys

import pytest

RIGHT = "def weighted_mean(values, mask): return (values * mask).sum() / mask.sum()\n"
WRONG = "def weighted_mean(values, mask): return values.mean()\n"


def run(course, folder, *arguments):
    tests = course / "tests" / "exercises"
    command = [
        sys.executable, "-m", "pytest", "-p", "autograder.plugin", "-p", "no:cacheprovider", "-c",
        "/dev/null", "--rootdir", str(folder), "-v", str(tests), *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)


@pytest.fixture(scope="module")
def own(course, tmp_path_factory):
    return run(course, tmp_path_factory.mktemp("own"))


def test_a_fresh_clone_is_green(own):
    assert own.returncode == 0, own.stdout
    assert "5 skipped" in own.stdout
    assert "01.1 weighted_mean[lessons] SKIPPED (not attempted)" in own.stdout


def test_a_class(course, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / "alice.py").write_text(RIGHT)
    (folder / "bob.py").write_text(WRONG)
    (folder / "carl.ipynb").write_text("{")
    done = run(course, tmp_path, "--submissions", str(folder), "--seed", "5", "-n", "2")
    assert done.returncode == 1
    assert "✗ 01.1 weighted_mean: The mask is forgotten" in done.stdout
    assert "carl: no exercise found" in done.stdout
    assert "seed of the cases: 5" in done.stdout
    with open(tmp_path / "marks" / "grades.csv", newline="", encoding="utf-8") as file:
        marks = {row["student"]: row["total"] for row in csv.DictReader(file)}
    assert marks == {"alice": "2", "bob": "0", "carl": "0"}
    assert (tmp_path / "marks" / "class.html").exists()
    assert (tmp_path / "marks" / "feedback" / "bob.html").exists()


def test_one_lesson_by_keyword(course, tmp_path):
    done = run(course, tmp_path, "-k", "02", "--collect-only", "-q")
    assert "02.1 longest_word" in done.stdout
    assert "weighted_mean" not in done.stdout
