"""``check`` in a kernel: a stub, a mistake, a loop, a right answer, in one session."""

import subprocess
import sys

import pytest

SESSION = '''
import os, sys
os.chdir(sys.argv[1] + "/lessons")
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_line_magic("colors", "nocolor")
def run(cell):
    print(f"<{cell[:60]!r}>")
    result = shell.run_cell(cell, store_history=True)
run("from autograder import check")
run("def weighted_mean(values, mask):\\n    raise NotImplementedError")
run("weighted_mean = check(weighted_mean)")
run("print('reference', weighted_mean.__module__)")
run("def weighted_mean(values, mask):\\n    while True: pass")
run("weighted_mean = check(weighted_mean)")
run("import torch\\nbeta = torch.tensor(2.0)")
run("def weighted_mean(values, mask): return values.sum() * beta")
run("weighted_mean = check(weighted_mean)")
run("def weighted_mean(values, mask):\\n    import sys; sys.exit()")
run("weighted_mean = check(weighted_mean)")
run("torch.set_default_dtype(torch.float64); torch.manual_seed(1); before = torch.rand(1)")
run("def weighted_mean(values, mask): return (values * mask).sum() / mask.sum()")
run("own = weighted_mean")
run("torch.manual_seed(1); weighted_mean = check(weighted_mean)")
run("print('undisturbed', torch.equal(before, torch.rand(1)), torch.get_default_dtype())")
run("print('own', weighted_mean is own)")
run("weighted_mean = check(weighted_mean)")
run("running_total = lambda values: values.cumsum(-1)")
run("running_total = check(running_total)")
run("def no_exercise(x): return x")
run("check(no_exercise)")
'''


@pytest.fixture(scope="module")
def said(course):
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(course)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "words",
    [
        "· 01.1 weighted_mean: Not attempted yet.",
        "reference toycourse.sums",
        "Is there a loop that never ends?",
        "`weighted_mean` uses `beta`, which is set in cell 7: pass it as an argument.",
        "It calls `exit`: a function gives its answer with `return`.",
        "✓ 01.1 weighted_mean: Right.",
        "undisturbed True torch.float64",
        "own True",
        "✓ 01.2 running_total: Right.",
        "Lesson 01, 2 of 4:   01.1 ✓   01.2 ✓   01.3     01.4",
        "ValueError: `no_exercise` is no exercise of this course",
    ],
)
def test_session(said, words):
    assert words in said


def test_a_card_is_html_and_text():
    from autograder.cards import Card
    from autograder.results import Result

    result = Result("01", "01.1", "f", "wrong", 0, 1, headline="uses `<x>`", case="f(1 < 2)")
    bundle = Card(result, "Lesson 01")._repr_mimebundle_()
    assert "uses `<x>`" in bundle["text/plain"]
    assert "uses <code>&lt;x&gt;</code>" in bundle["text/html"]
    assert "f(1 &lt; 2)" in bundle["text/html"]
