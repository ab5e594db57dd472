"""The capstone, which no program marks: its template runs and says what is undone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autograder.build import build
from autograder.grading import grade
from autograder.proof import prove

ROOT = Path(__file__).resolve().parents[2]
LESSON = ROOT / "lessons" / "11_align_it_to_your_taste.ipynb"
SMALLER = {  # everything that takes long; the words, widgets and tables are all there
    "KitchenSizes(10_000, base_steps=600, sft_steps=200)":
        "KitchenSizes(300, base_steps=30, demonstrations=300, sft_steps=30)",
    "steps=40": "steps=2",
    "steps=60": "steps=3",
    "sample_prompts(400, seed=13_000": "sample_prompts(90, seed=13_000",
    "two_answers(200, seed=12_000)": "two_answers(30, seed=12_000)",
}
UNDONE = "✎ still as handed out:"


def template(**changes) -> str:
    """The code of the template, made small, with some texts of it replaced."""
    cells = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
    code = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for old, new in {**SMALLER, **changes}.items():
        assert old in code, f"the template no longer holds {old!r}"
        code = code.replace(old, new)
    return code


def run(code: str, folder: Path):
    """Run a notebook's code in a process and a folder of its own."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "MPLBACKEND": "agg"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=folder, env=environment, timeout=600)


def test_the_template_runs_as_handed_out_and_says_what_is_undone(tmp_path):
    done = run(template(), tmp_path)
    assert done.returncode == 0, done.stderr
    undone = done.stdout.split(UNDONE)[1]
    for place in ("your taste", "prediction", "methods", "your probe", "Claim", "Failure",
                  "a script clicked", "placeholder_taste"):
        assert place in undone
    assert not any(tmp_path.iterdir()), "a script's labels are no student's"


@pytest.mark.parametrize("methods", ['("PPO", "best-of-n")', '("IPO", "SimPO")'])
def test_every_method_runs_and_what_is_filled_in_is_not_asked_for(methods, tmp_path):
    own = {'("DPO", "GRPO")': methods, '"""✎ ': '"""mine: ', "placeholder_taste": "my_own"}
    done = run(template(**own), tmp_path)
    assert done.returncode == 0, done.stderr
    undone = done.stdout.split(UNDONE)[1].strip().splitlines()
    assert undone[0].startswith("your labels")
    assert not any("section 2)" in line or "section 9)" in line for line in undone)


def test_a_null_result_runs_to_its_end(tmp_path):
    """A judge who only sees ties blind, one seed: no error, and no win."""
    own = {"(0, 1, 2)  # of": "(0,)  # of", "blind = {seed:": "by_taste = all_ties\nblind = {seed:",
           "def blind_widget": "def all_ties(*shown):\n    return 'tie'\n\n\ndef blind_widget"}
    done = run(template(**own), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0.50 [0.35, 0.65] of 40" in done.stdout
    assert "one seed: no interval" in done.stdout


def test_without_a_click_the_template_says_where_to_click(tmp_path):
    done = run(template(**{"CLICK = False": "CLICK = True"}), tmp_path)
    assert done.returncode != 0
    assert "there is no label yet: label in the widget above" in done.stderr


def test_the_printed_rubric_is_the_lesson_s():
    page = (ROOT / "classroom" / "capstone_rubric.md").read_text(encoding="utf-8")
    cells = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
    lesson = " ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    lesson = " ".join(re.sub(r"(?m)^#+ ", "", lesson).split())
    blocks = page.split("students know it before they begin.")[1].strip().split("\n\n")
    assert len(blocks) > 12
    for block in blocks:
        assert " ".join(re.sub(r"(?m)^#+ ", "", block).split()) in lesson
    assert sum(int(n) for n in re.findall(r"· [^,]+, (\d+) points\.", page)) == 20


def test_build_and_proof_pass_a_lesson_without_exercises():
    assert build(ROOT, ["11"], check=True) == 0
    said = []
    assert prove(ROOT, "11", say=said.append) == 0
    assert said == ["lesson 11 has no exercises: nothing to prove"]


def test_handed_in_by_mistake_it_gets_no_marks_and_no_zero(tmp_path):
    assert grade([LESSON], tmp_path / "marks", root=ROOT, jobs=1, say=lambda text: None) == 0
    row = (tmp_path / "marks" / "grades.csv").read_text(encoding="utf-8").splitlines()[-1]
    assert "no exercise found" in row
    assert row.endswith(",0,0")
