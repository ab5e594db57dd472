"""From the source of a lesson to its two notebooks."""

import shutil

import nbformat
import pytest

from autograder.build import build, lesson_notebook, read_source_notebook, solution_notebook
from autograder.outputs import clean_outputs
from autograder.regions import stubbed


@pytest.fixture(scope="module")
def source(course):
    return read_source_notebook(course / "solutions" / "01_sums.py")


def text_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


def test_the_lesson_has_stubs_and_no_answers(source):
    lesson = text_of(lesson_notebook(source))
    code = "\n".join(c.source for c in lesson_notebook(source).cells if c.cell_type == "code")
    assert 'raise NotImplementedError("write weighted_mean here")' in lesson
    assert "mask.sum()" not in code
    assert "SOLUTION" not in lesson
    assert "STUB" not in lesson
    assert "    squared = ...\n    raise NotImplementedError\n" in lesson + "\n"
    assert "total = values.clone()" in lesson


def test_the_solution_has_answers_and_no_marks(source):
    solution = text_of(solution_notebook(source))
    assert "return (values * mask).sum() / mask.sum()" in solution
    assert "SOLUTION" not in solution
    assert "STUB" not in solution


def test_the_worked_answer_stands_in_a_collapsed_part(source):
    text = text_of(lesson_notebook(source))
    shown = "```python\ndef weighted_mean(values, mask):\n    return"
    assert f"<summary>Worked answer</summary>\n\n{shown}" in text


def test_cells_for_one_of_the_two_only(source):
    assert "only in the solution" not in text_of(lesson_notebook(source))
    assert "only in the lesson" not in text_of(solution_notebook(source))


def test_ids_are_fixed_and_shared(course, source):
    again = read_source_notebook(course / "solutions" / "01_sums.py")
    assert [cell.id for cell in again.cells] == [cell.id for cell in source.cells]
    nbformat.validate(lesson_notebook(source))


def test_the_stub_stands_where_the_region_stood():
    region = "        # SOLUTION\n        return 1\n        # END SOLUTION\n"
    cell = f"class A:\n    def f(self):\n{region}    x = 2"
    assert stubbed(cell).split("\n")[2] == '        raise NotImplementedError("write f here")'


@pytest.mark.parametrize(
    "cell", ["# SOLUTION\nx = 1", "# END SOLUTION", "# SOLUTION\n# SOLUTION\n# END SOLUTION"]
)
def test_marks_that_do_not_pair_are_an_error(cell):
    with pytest.raises(ValueError, match="SOLUTION"):
        stubbed(cell, "cell 1")


def test_what_is_committed_is_what_the_source_gives(course):
    assert build(course, check=True, say=print) == 0


@pytest.fixture
def copy(course, tmp_path):
    for part in ("solutions", "lessons"):
        shutil.copytree(course / part, tmp_path / part)
    return tmp_path


@pytest.mark.parametrize("part", ["lessons", "solutions"])
def test_check_sees_a_changed_cell(copy, part):
    path = copy / part / "01_sums.ipynb"
    path.write_text(path.read_text().replace("Toy lesson 01", "Toy lesson one"))
    said = []
    assert build(copy, check=True, say=said.append) == 1
    assert said == [
        f"{part}/01_sums.ipynb is not what its source gives, from cell 01-000 on; "
        "run `make notebooks`"
    ]


def test_check_sees_what_is_missing_or_was_not_run(copy):
    (copy / "lessons" / "02_words.ipynb").unlink()
    shutil.copy(copy / "lessons" / "01_sums.ipynb", copy / "solutions" / "01_sums.ipynb")
    said = []
    assert build(copy, check=True, say=said.append) == 1
    assert any("is missing" in line for line in said)
    assert any("not run" in line for line in said)


def test_check_does_not_look_at_outputs(copy):
    path = copy / "solutions" / "01_sums.ipynb"
    path.write_text(
        path.read_text().replace('only in the solution\\n"\n     ]', 'other\\n"\n     ]')
    )
    assert build(copy, check=True, say=lambda text: None) == 0


def test_building_without_running_keeps_outputs(copy):
    before = (copy / "solutions" / "01_sums.ipynb").read_text()
    assert build(copy, run=False, say=lambda text: None) == 0
    assert (copy / "solutions" / "01_sums.ipynb").read_text() == before


def test_committed_outputs_are_small_and_of_no_machine(course):
    text = (course / "solutions" / "01_sums.ipynb").read_text()
    assert "✓ 01.1 weighted_mean: Right." in text
    assert "/lib/python3" not in text.replace("<python>/lib/python3", "")
    assert "widget" not in text
    assert "it/s" not in text
    assert len(text) < 30_000


def test_outputs_are_cleaned(tmp_path):
    new = nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell("x")
    cell.outputs = [
        new("stream", name="stderr", text="\r 10%|█ | 1/10 [00:01<00:09, 1.0it/s]\n"),
        new("stream", name="stdout", text=f"{tmp_path}/a.py\n"),
        new("stream", name="stdout", text="<f at 0x7f00aa11bb22>\n"),
        new(
            "display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "w"}
        ),
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    clean_outputs(notebook, tmp_path)
    assert [output.text for output in cell.outputs] == ["a.py\n<f at 0x…>\n"]
    assert "widgets" not in notebook.metadata
