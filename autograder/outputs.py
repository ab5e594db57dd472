"""Keeps executed notebooks small and free of the machine they ran on.

Leaves out: changing a figure. One that is too large is the author's to make smaller.
"""

import re
import sys
from pathlib import Path

__all__ = ["clean_outputs"]

WIDGETS = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")
BAR = re.compile(r"\d+%\||it/s\]|s/it\]|\?it/s|\d+it \[")
ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")


def clean_outputs(notebook, root: Path) -> None:
    """Drop widget state and progress bars, shorten machine paths, join streams; in place."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            cleaned = [_cleaned(output, root) for output in cell.outputs]
            cell.outputs = _joined([output for output in cleaned if output is not None])


def _cleaned(output, root: Path):
    """The output without what does not belong in it; None where nothing is left."""
    if output.output_type == "stream":
        output.text = _impersonal(without_bars(output.text), root)
        return output if output.text.strip() else None
    if output.output_type == "error":
        output.traceback = [_impersonal(line, root) for line in output.traceback]
        return output
    if any(kind in output.data for kind in WIDGETS):
        return None  # a widget's text form says nothing without the widget
    for kind, value in list(output.data.items()):
        if kind.startswith("text/") or kind == "application/javascript":
            output.data[kind] = _impersonal(
                value if isinstance(value, str) else "".join(value), root
            )
    return output


def without_bars(text: str) -> str:
    """What a terminal would show in the end, less progress bars.

    >>> without_bars("\\r 10%|# | 1/10\\r100%|##| 10/10\\ndone\\n")
    'done\\n'
    """
    lines = [line.rstrip("\r").split("\r")[-1] for line in text.split("\n")]
    kept = [line for line in lines if not BAR.search(line)]
    return "\n".join(kept)


def _impersonal(text: str, root: Path) -> str:
    root = str(Path(root).resolve())
    for path, short in (
        (f"{root}/", ""), (root, "."), (sys.prefix, "<python>"), (sys.base_prefix, "<python>"),
        (str(Path.home()), "~"),
    ):
        if len(path) > 2:
            text = text.replace(path, short)
    return ADDRESS.sub(" at 0x…", text)


def _joined(outputs) -> list:
    """Neighbouring pieces of one stream as one piece."""
    result = []
    for output in outputs:
        last = result[-1] if result else None
        if last is not None and output.output_type == last.output_type == "stream" \
                and output.name == last.name:
            last.text += output.text
        else:
            result.append(output)
    return result
