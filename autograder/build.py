"""``python -m autograder build``: from ``solutions/NN_topic.py`` to the two notebooks of a lesson.

The source is jupytext's percent text. What students are to write stands between ``# SOLUTION`` and
``# END SOLUTION``; the lesson has a stub there. Cell ids come from the source, so that building
twice gives the same bytes.

Leaves out: how outputs are cleaned (``outputs.py``).
"""

import ast
import copy
import os
import re
import sys
from pathlib import Path

from autograder.outputs import clean_outputs
from autograder.regions import answer_text, stubbed, without_markers

__all__ = ["build", "lesson_notebook", "read_source_notebook", "solution_notebook"]

ANSWER = re.compile(r"<!-- answer: (\w+) -->")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
RUN_S = 1800                    # a cell that takes longer than this has no place in a lesson


def build(root: Path, lessons=(), check=False, run=True, say=print) -> int:
    """Build every lesson, or those numbered; with ``check`` only compare. Returns the exit code."""
    wanted = {str(number).zfill(2) for number in lessons}
    sources = [
        path for path in sorted((Path(root) / "solutions").glob("[0-9][0-9]_*.py"))
        if not wanted or path.name[:2] in wanted
    ]
    if not sources:
        say(f"no solutions/NN_topic.py in {root}")
        return 2 if wanted else 0
    faults = [
        fault for path in sources for fault in (_check if check else _write)(path, root, run, say)
    ]
    for fault in faults:
        say(fault)
    return 1 if faults else 0


def read_source_notebook(path: Path):
    """The source as a notebook, each cell with an id of its own."""
    import jupytext

    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata = copy.deepcopy(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    answers = _answers(notebook)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{path.name[:2]}-{number:03d}"
        cell.metadata.pop("lines_to_next_cell", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        elif cell.cell_type == "markdown":
            cell.source = ANSWER.sub(lambda m: _worked_answer(m[1], answers, path), cell.source)
    return notebook


def _answers(notebook) -> dict[str, str]:
    """Functions and classes that hold a marked region, as they stand, without docstring and
    markers.
    """
    found = {}
    for cell in notebook.cells:
        if cell.cell_type != "code" or "# SOLUTION" not in cell.source:
            continue
        lines = cell.source.split("\n")
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = answer_text(node, lines)
    return found


def _worked_answer(name: str, answers, path) -> str:
    if name not in answers:
        raise ValueError(f"{path.name}: <!-- answer: {name} --> but no marked region in `{name}`")
    return (
        "<details>\n<summary>Worked answer</summary>\n\n"
        f"```python\n{answers[name]}\n```\n\n</details>"
    )


def solution_notebook(source):
    """What instructors read: everything, without the markers."""
    notebook = copy.deepcopy(source)
    notebook.cells = [
        cell for cell in notebook.cells if "lesson" not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = "\n".join(without_markers(cell.source.split("\n")))
    return notebook


def lesson_notebook(source, name: str = "the source"):
    """What students get: stubs for the marked regions, no outputs."""
    notebook = copy.deepcopy(source)
    notebook.cells = [
        cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = stubbed(cell.source, f"{name}, cell {cell.id}")
    return notebook


def _targets(path: Path, root: Path):
    return Path(root) / "solutions" / f"{path.stem}.ipynb", Path(
        root
    ) / "lessons" / f"{path.stem}.ipynb"


def _text(notebook) -> str:
    import nbformat

    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def _write(path: Path, root: Path, run: bool, say) -> list[str]:
    source = read_source_notebook(path)
    solution, lesson = solution_notebook(source), lesson_notebook(source, path.name)
    to_solution, to_lesson = _targets(path, root)
    to_lesson.parent.mkdir(exist_ok=True)
    if run:
        say(f"{path.stem}: running")
        _execute(solution, root)
    elif to_solution.exists():
        _keep_outputs(solution, to_solution)
    solution.metadata = copy.deepcopy(METADATA)
    clean_outputs(solution, root)
    for target, notebook in ((to_lesson, lesson), (to_solution, solution)):
        partial = target.with_name(f".{target.name}.partial")
        partial.write_text(_text(notebook), encoding="utf-8")
        os.replace(partial, target)
    say(f"{path.stem}: {to_solution.stat().st_size / 1e6:.2f} MB with outputs")
    return []


def _execute(notebook, root: Path) -> None:
    """Run every cell in a fresh kernel, from the lessons' folder, as a student would."""
    import nbclient

    where = {"metadata": {"path": str(Path(root) / "lessons")}}
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(part for part in paths if part)
    client = nbclient.NotebookClient(
        notebook, timeout=RUN_S, kernel_name="python3", resources=where, record_timing=False,
        store_widget_state=False, iopub_timeout=120, raise_on_iopub_timeout=True,  # lose no output
    )
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        print(str(error)[-3000:], file=sys.stderr)
        raise ValueError(f"a cell of the solution fails: {error.ename}: {error.evalue}") from None


def _keep_outputs(notebook, committed: Path) -> None:
    """Take over the outputs of cells that have not changed."""
    import nbformat

    old = {cell.get("id"): cell for cell in nbformat.read(committed, as_version=4).cells}
    for cell in notebook.cells:
        before = old.get(cell.id)
        if cell.cell_type == "code" and before is not None and before.source == cell.source:
            cell.outputs, cell.execution_count = before.outputs, before.execution_count


def _check(path: Path, root: Path, run: bool, say) -> list[str]:
    """How what is committed differs from what the source gives."""
    source = read_source_notebook(path)
    to_solution, to_lesson = _targets(path, root)
    return [
        *_differs(to_lesson, lesson_notebook(source, path.name), outputs=False),
        *_differs(to_solution, solution_notebook(source), outputs=True),
    ]


def _differs(target: Path, wanted, outputs: bool) -> list[str]:
    import nbformat

    name = f"{target.parent.name}/{target.name}"
    if not target.exists():
        return [f"{name} is missing; run `make notebooks`"]
    found = nbformat.read(target, as_version=nbformat.NO_CONVERT)
    code = [cell for cell in found.cells if cell.cell_type == "code" and cell.source.strip()]
    if outputs and any(cell.execution_count is None for cell in code):
        return [f"{name} has cells that were not run; run `make notebooks`"]
    for cell in found.cells if outputs else ():
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    if _text(found) == _text(wanted):
        return []
    for ours, theirs in zip(wanted.cells, found.cells, strict=False):
        if ours != theirs:
            return [
                f"{name} is not what its source gives, from cell {ours.id} on; run `make notebooks`"
            ]
    return [f"{name} is not what its source gives; run `make notebooks`"]
