"""What students get."""

import json
import subprocess
from pathlib import Path

from autograder.releasing import course_files, release, without_answers

ROOT = Path(__file__).resolve().parents[2]


def test_a_release_holds_the_course_and_no_solutions(tmp_path):
    assert release(ROOT, tmp_path / "out", say=lambda text: None) == 0
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert {"README.md", "lessons", "rlhf_minimal", "autograder", "tests/exercises"} <= names
    assert not names & {"solutions", "tests/autograder", "tests/package", ".git", "gradescope"}


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert release(ROOT, tmp_path, say=lambda text: None) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_worked_answers_can_stay_behind(tmp_path):
    release(ROOT, tmp_path / "out", answers=False, say=lambda text: None)
    for path in (tmp_path / "out" / "lessons").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert "Worked answer" not in text
        assert text.count("Hint 1") == (ROOT / "lessons" / path.name).read_text().count("Hint 1")
        assert text.count("<details>") == text.count("</details>") > 0
        json.loads(text)


def test_what_follows_an_answer_is_kept():
    folded = "a\n\n<details>\n<summary>Worked answer</summary>\n\nx\n\n</details>\n\nb"
    cells = [{"cell_type": "markdown", "source": [folded]}]
    kept = json.loads(without_answers(json.dumps({"cells": cells})))
    assert "".join(kept["cells"][0]["source"]) == "a\n\nb"


def test_without_git_what_merely_lies_there_stays_behind(tmp_path):
    release(ROOT, tmp_path / "out", say=lambda text: None)
    for name in ("submissions", "marks"):
        (tmp_path / "out" / name).mkdir()
        (tmp_path / "out" / name / "alice.ipynb").write_text("{}")
    inside = subprocess.run(["git", "-C", str(tmp_path), "rev-parse"], capture_output=True)
    assert inside.returncode != 0
    assert course_files(tmp_path / "out") == course_files(ROOT)
