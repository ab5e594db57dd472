"""What of a submission counts."""

import json

import pytest

from autograder.cells import Cell, Unreadable, blank_magics, read_cells, without_outputs
from autograder.reading import needed, read_source


def read(*sources):
    return read_source([Cell(f"cell {n}", source) for n, source in enumerate(sources, 1)])


def sources_for(reading, *names):
    return [statement["source"] for statement in needed(reading.statements, names)]


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "from math import *",
        "def f(x): return x",
        "class A: pass",
        "async def f(): pass",
        "x = 1",
        "x: float = -1.5e-3",
        "a, b = 1, [2, {'c': (3, None)}]",
        "f = lambda x: x",
        "relu = torch.nn.functional.relu",
        "lowest = float('-inf')",
        "size = 4 * width",
        "device = torch.device('cpu')",
        "try:\n    import a\nexcept ImportError:\n    a = None",
    ],
)
def test_definitions_count(source):
    assert len(read(source).statements) == 1


@pytest.mark.parametrize(
    "source",
    [
        "train()",
        "x = train()",
        "x = torch.randn(3)",
        "f = check(f)",
        "for i in range(3): pass",
        "while True: pass",
        "with open('x') as f: pass",
        "if __name__ == '__main__': main()",
        "x[0] = 1",
        "torch.allclose = None",
        "x += 1",
        "x = [train() for _ in y]",
        "raise SystemExit",
    ],
)
def test_everything_else_does_not_run(source):
    assert read(source).statements == []


def test_names_set_by_what_does_not_run_are_remembered():
    reading = read("beta = train()", "for i in x:\n    loss = 1\nwith y as z: pass")
    assert reading.dropped == {"beta": "cell 1", "i": "cell 2", "loss": "cell 2", "z": "cell 2"}


def test_the_last_definition_counts():
    reading = read("def f(): return 1", "def f(): return 2")
    assert sources_for(reading, "f") == ["def f(): return 2"]


def test_a_number_of_the_same_name_does_not_hide_a_function():
    assert sources_for(read("def f(): return 1", "f = 0.5"), "f") == ["def f(): return 1"]


def test_running_the_imports_again_does_not_hide_a_function():
    reading = read("def f(): return 1", "from course import f, g")
    assert sources_for(reading, "f")[-1] == "def f(): return 1"


def test_only_what_is_needed_is_taken():
    reading = read(
        "import math\nimport slow\nK = 2",
        "def helper(x): return math.exp(x) * K\ndef other(): return slow",
        "def f(x): return helper(x)",
    )
    assert sources_for(reading, "f") == [
        "import math",
        "K = 2",
        "def helper(x): return math.exp(x) * K",
        "def f(x): return helper(x)",
    ]


def test_imports_that_bind_one_name_are_all_taken():
    reading = read("import torch", "import torch.nn.functional", "def f(): return torch.nn")
    assert len(sources_for(reading, "f")) == 3


def test_several_statements_on_a_line_are_told_apart():
    reading = read("x = 1; y = train(); z = 3")
    assert [s["defines"] for s in reading.statements] == [["x"], ["z"]]


def test_a_decorated_function_keeps_its_decorators_and_line():
    reading = read("import functools\n\n@functools.cache\ndef f(): return 1")
    assert reading.statements[1]["line"] == 3
    assert reading.statements[1]["source"].startswith("@functools.cache")


def test_a_broken_piece_costs_only_what_it_defines():
    reading = read("def good(): return 1\n\ndef bad(:\n    return 2\n\ndef also_good(): return 3")
    assert {n for s in reading.statements for n in s["defines"]} == {"good", "also_good"}
    assert [piece["names"] for piece in reading.broken] == [["bad"]]
    assert reading.broken[0]["line"] == 3


@pytest.mark.parametrize(
    "source",
    ["%matplotlib inline\nx = 1", "!ls\nx = 1", "x = 1\n?torch", "torch??\nx = 1", "%%time\nx = 1",
     "files = !ls\nx = 1", "if True:\n    %time f()\nx = 1"],
)
def test_magics_and_shell_lines_are_blanked(source):
    assert any("x" in s["defines"] for s in read(source).statements)


def test_a_cell_of_another_language_is_empty():
    assert blank_magics("%%bash\nrm -rf /") == ""


def test_a_remainder_over_two_lines_is_no_magic():
    source = "x = (7\n  % 4)"
    assert blank_magics(source) == source


def test_outputs_are_cut_out_unread():
    outputs = [{"text": "}]\\\" \" [{", "data": {"a": [[{}]]}}]
    cells = [{"cell_type": "code", "outputs": outputs, "source": "x"}]
    assert json.loads(without_outputs(json.dumps({"cells": cells}).encode()))["cells"] == [
        {"cell_type": "code", "outputs": [], "source": "x"}
    ]


def test_the_word_outputs_in_a_source_is_left_alone():
    cells = [{"cell_type": "code", "source": 'd = {"outputs": [1, 2]}', "outputs": []}]
    data = json.dumps({"cells": cells}).encode()
    assert read_cells(data, "a.ipynb")[0].source == 'd = {"outputs": [1, 2]}'


def test_a_percent_file_keeps_its_line_numbers():
    cells = read_cells(b"# %%\nx = 1\n# %% [markdown]\n# text\n# %%\ny = 2\n", "a.py")
    assert [
        cell.source.split("\n").index(f"{n} = {v}")
        for cell, n, v in zip(cells, "xy", "12", strict=True)
    ] == [1, 5]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b"<html>", b"<<<<<<< HEAD\n{}\n>>>>>>> x"]
)
def test_what_is_no_notebook_says_why(data):
    with pytest.raises(Unreadable, match=r"\w"):
        read_cells(data, "a.ipynb")
