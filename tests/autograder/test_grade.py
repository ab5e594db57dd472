"""``python -m autograder grade``: what an instructor gets, whatever is in the folder."""

import csv
import json
import subprocess
import sys

import pytest

from autograder.grading import grade
from autograder.pages import class_page
from autograder.reports import Record, grades
from autograder.results import Result
from autograder.submissions import collect_entries

RIGHT = "def weighted_mean(values, mask): return (values * mask).sum() / mask.sum()\n"
WRONG = "def weighted_mean(values, mask): return values.mean()\n"
TOTAL = "def running_total(values): return values.cumsum(-1)\n"
DETAILS = "submission,lesson,number,exercise,verdict,points,out_of,mistake,seconds"


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def graded(course, tmp_path_factory):
    """A class of odd names, graded once."""
    folder = tmp_path_factory.mktemp("class")
    for name in ("alice.py", "=SUM(A1).py", "Zoë O'Hara; drop.py", "a#b%c.py"):
        (folder / name).write_text(RIGHT + TOTAL)
    (folder / "wrong.py").write_text(WRONG + TOTAL)
    (folder / "words.py").write_text("def longest_word(words): return max(words, key=len)\n")
    (folder / "cut.ipynb").write_text("{")
    (folder / "nothing.py").write_text("x = 1\n")
    (folder / "notes.txt").write_text("not a submission")
    (folder / ".hidden.py").write_text(RIGHT)
    for student in ("dora", "eve"):
        (folder / student).mkdir()
        (folder / student / "alice.py").write_text("from helper import *\n" + TOTAL)
        (folder / student / "helper.py").write_text(RIGHT)
    (folder / "more").mkdir()
    (folder / "more" / "wrong.py").write_text(RIGHT)
    (folder / "loop").symlink_to(folder)
    out = tmp_path_factory.mktemp("marks") / "out"
    said = []
    code = grade(
        [folder, folder / "more" / "wrong.py"], out, root=course, seed="7", say=said.append
    )
    return folder, out, code, said


def test_all_is_said_and_well(graded):
    _, _, code, said = graded
    assert code == 0
    assert said[0].startswith("isolation level ")
    assert "seed of the cases: 7" in said[1]


def test_one_row_a_submission_with_a_name_of_its_own(graded):
    _, out, _, _ = graded
    table = rows(out / "grades.csv")
    names = [row["student"] for row in table]
    assert len(names) == len(set(names)) == 13
    assert {"alice", "SUM(A1)", "Zoë O_Hara_ drop", "a_b_c", "dora", "more wrong"} <= set(names)
    marks = {row["student"]: (row["total"], row["out of"]) for row in table}
    assert marks["alice"] == marks["dora"] == ("3", "8")
    assert marks["wrong"] == ("1", "8")
    assert marks["words"] == ("2", "2")
    assert marks["cut"] == ("0", "0")


def test_what_cannot_be_read_says_so(graded):
    _, out, _, _ = graded
    status = {row["student"]: row["status"] for row in rows(out / "grades.csv")}
    assert status["alice"] == "graded"
    assert status["cut"].startswith("unreadable: not a notebook")
    assert status["loop"].startswith("unreadable: there is no .ipynb or .py file")
    assert status["nothing"] == "no exercise found"


def test_details(graded):
    _, out, _, _ = graded
    assert (out / "details.csv").read_text(encoding="utf-8").split("\n")[0] == DETAILS
    row = next(r for r in rows(out / "details.csv") if r["submission"] == "wrong")
    assert (row["number"], row["verdict"], row["points"], row["mistake"]) == (
        "01.1",
        "wrong",
        "0",
        "no_mask",
    )


def test_no_cell_is_a_formula(graded):
    _, out, _, _ = graded
    for name in ("grades.csv", "details.csv"):
        with open(out / name, newline="", encoding="utf-8") as file:
            assert not [
                cell for row in csv.reader(file) for cell in row if cell[:1] in ("=", "+", "@")
            ]


def test_a_page_and_a_gradescope_file_each(graded):
    _, out, _, _ = graded
    names = {row["student"] for row in rows(out / "grades.csv")}
    assert {path.stem for path in (out / "feedback").glob("*.html")} == names
    assert {path.stem for path in (out / "gradescope").glob("*.json")} == names
    page = (out / "feedback" / "wrong.html").read_text(encoding="utf-8")
    assert "The mask is forgotten" in page
    results = json.loads((out / "gradescope" / "wrong.json").read_text(encoding="utf-8"))
    assert results["score"] == 1
    assert [test["max_score"] for test in results["tests"]] == [2, 1, 3, 2]


def test_the_class_page_shows_mistakes_and_marks(graded):
    _, out, _, _ = graded
    page = (out / "class.html").read_text(encoding="utf-8")
    assert "13 submissions" in page
    assert "The mask is forgotten" in page
    assert "feedback/Zo%C3%AB%20O_Hara_%20drop.html" in page
    assert "<script" not in page


def test_a_tenth_exercise_stands_after_the_ninth():
    results = [Result("07", f"07.{n}", f"f{n}", "right", 1, 1) for n in (10, 2, 9)]
    record = Record("ada", "ada.ipynb", "", "1", "graded", results=results)
    page, table = class_page([record], {}), grades([record])
    assert page.index("07.2") < page.index("07.9") < page.index("07.10")
    assert table.index("07.2") < table.index("07.9") < table.index("07.10")


def test_marks_are_for_their_owner_only(graded):
    _, out, _, _ = graded
    assert out.stat().st_mode & 0o077 == 0


def test_resume_grades_only_what_is_new_or_changed(course, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.py").write_text(RIGHT)
    (folder / "b.py").write_text(WRONG)
    assert grade([folder], out, root=course, seed="1", say=lambda text: None) == 0
    state = out / ".state" / "a.json"
    kept = state.read_text().replace('"points": 2', '"points": 1.5')
    state.write_text(kept)                                  # to see that it is not graded again
    (folder / "b.py").write_text(RIGHT)
    (folder / "c.py").write_text(RIGHT)
    (out / ".state" / "torn.json").write_text("{")
    assert grade([folder], out, root=course, resume=True, say=lambda text: None) == 0
    marks = {row["student"]: row["total"] for row in rows(out / "grades.csv")}
    assert marks == {"a": "1.5", "b": "2", "c": "2"}
    seeds = {json.loads((out / ".state" / f"{n}.json").read_text())["seed"] for n in "abc"}
    assert seeds == {"1"}


def test_official_refuses_level_0(course, tmp_path):
    (tmp_path / "a.py").write_text(RIGHT)
    said = []
    code = grade(
        [tmp_path], tmp_path / "out", root=course, official=True, plan="none", say=said.append
    )
    assert code == 2
    assert "level 0" in said[0]
    assert not (tmp_path / "out").exists()


def test_the_command_line(course, tmp_path):
    (tmp_path / "a.py").write_text(RIGHT)
    command = [sys.executable, "-m", "autograder", "--root", str(course), "grade"]
    done = subprocess.run([*command, str(tmp_path / "a.py"), "--out", str(tmp_path / "out")],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1/1" in done.stderr
    missing = subprocess.run([*command, str(tmp_path / "none"), "--out", str(tmp_path / "out")],
                             capture_output=True, text=True, timeout=300)
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr


def test_names_differ_even_where_only_case_does(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for path in ("one/Alice.py", "two/alice.py", "two/ALICE.ipynb"):
        (tmp_path / path).write_text("")
    entries = collect_entries([tmp_path / "one" / "Alice.py", tmp_path / "two"])
    assert len({entry.name.casefold() for entry in entries}) == 3
