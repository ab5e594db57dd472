"""From the bytes of a submission to its code cells: notebooks of every age, and Python files.

Notebooks come back from Colab, Windows, Drive and merges in every state: nbformat 3 or 4, with a
byte order mark or in UTF-16, with a hundred megabytes of pictures. Outputs are dropped before the
JSON is parsed; a cell that is no cell costs itself.

Leaves out: running anything; deciding what of a cell counts (``reading.py``).
"""

import ast
import codecs
import dataclasses
import json
import re

__all__ = ["Cell", "Unreadable", "read_cells"]

MAX_CELLS = 5_000
MAX_SOURCE = 2 << 20            # characters of code in one submission
DROPPED_KEYS = {b'"outputs"', b'"attachments"', b'"widgets"', b'"output"'}
# A JSON string, or one of the signs that open, close and separate. Possessive, so that it cannot
# backtrack.
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
NOT_PYTHON = re.compile(
    r"%%(bash|sh|html|javascript|js|latex|markdown|writefile|svg|perl|ruby|cmd|script|system|sx|file|file_edit"
    r"|bigquery|R|cython|cpp|shell)\b"
)


class Unreadable(ValueError):
    """The file is no notebook and no Python text; the message says why."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One code cell: its label for people (``cell 3``) and its source, magics and all."""

    label: str
    source: str


def read_cells(data: bytes, name: str) -> list[Cell]:
    """The code cells of a file with these bytes and this name.

    >>> read_cells(b'{"cells": [{"cell_type": "code", "source": ["x = 1"]}]}', "a.ipynb")
    [Cell(label='cell 1', source='x = 1')]
    """
    lower = name.lower()
    if lower.endswith(".py"):
        return python_cells(decode(data), name)
    if not data.strip(b"\x00 \t\r\n\xef\xbb\xbf\xff\xfe"):
        raise Unreadable("the file is empty")
    return notebook_cells(data)


def decode(data: bytes) -> str:
    """Text in whatever encoding it came: marks first, then UTF-8, UTF-16 by its zeros, Latin-1 at
    last.
    """
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    if data[:200].count(0) > len(data[:200]) // 4:
        return data.decode("utf-16-be" if data[:1] == b"\0" else "utf-16-le", "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def without_outputs(data: bytes) -> bytes:
    """The JSON text with the values of ``outputs`` (and other bulk) cut out, unread."""
    kept, start, position = [], 0, 0
    while match := TOKEN.search(data, position):
        position = match.end()
        if match.group() not in DROPPED_KEYS:
            continue
        colon = re.compile(rb"\s*:\s*(?=[\[{])").match(data, position)
        if colon is None:
            continue
        end = _end_of_value(data, colon.end())
        kept += [
            data[start : colon.end()],
            b"[]" if data[colon.end() : colon.end() + 1] == b"[" else b"{}",
        ]
        start = position = end
    return b"".join([*kept, data[start:]])


def _end_of_value(data: bytes, start: int) -> int:
    depth = 0
    for match in TOKEN.finditer(data, start):
        sign = match.group()
        if sign in (b"[", b"{"):
            depth += 1
        elif sign in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                return match.end()
    return len(data)


def notebook_cells(data: bytes) -> list[Cell]:
    """The code cells of a notebook, in order."""
    if data[:4].count(0) or data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        data = decode(data).encode("utf-8", "replace")
    text = decode(without_outputs(data))
    try:
        notebook = json.loads(text, strict=False)
    except RecursionError:
        raise Unreadable("the notebook is nested too deeply to be one") from None
    except ValueError as error:
        raise Unreadable(f"not a notebook: {_why_not_json(text, error)}") from None
    found = [cell for cell in _raw_cells(notebook) if _is_code(cell)]
    if len(found) > MAX_CELLS:
        raise Unreadable(f"{len(found)} code cells; {MAX_CELLS} are the most that are read")
    cells = [Cell(f"cell {n}", _source(cell)) for n, cell in enumerate(found, 1)]
    if sum(len(cell.source) for cell in cells) > MAX_SOURCE:
        raise Unreadable(f"more than {MAX_SOURCE:,} characters of code")
    return cells


def _why_not_json(text: str, error) -> str:
    if "<<<<<<<" in text and ">>>>>>>" in text:
        return "it holds the marks of an unfinished git merge (<<<<<<<)"
    if text.lstrip()[:1] == "<":
        return "it is a web page; download the notebook itself"
    return f"its JSON breaks off or is damaged ({error})"


def _raw_cells(notebook) -> list:
    if not isinstance(notebook, dict):
        raise Unreadable(f"not a notebook: its JSON is a {type(notebook).__name__}, not an object")
    cells = notebook.get("cells")
    if isinstance(cells, list):
        return cells
    sheets = notebook.get("worksheets")
    if isinstance(sheets, list):                       # nbformat 3
        return [c for s in sheets if isinstance(s, dict) for c in (s.get("cells") or [])]
    raise Unreadable("not a notebook: it has no cells")


def _is_code(cell) -> bool:
    return isinstance(cell, dict) and cell.get("cell_type") == "code"


def _source(cell: dict) -> str:
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    source = source if isinstance(source, str) else ""
    return source.replace("\r\n", "\n").replace("\r", "\n")


def python_cells(text: str, name: str) -> list[Cell]:
    """The cells of a Python file: what ``# %%`` separates, or the whole; lines keep the file's
    numbers.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    if len(text) > MAX_SOURCE:
        raise Unreadable(f"more than {MAX_SOURCE:,} characters of code")
    blocks, block, prose = [], [], False
    for number, line in enumerate(text.split("\n")):
        if re.match(r"# ?%%", line):
            blocks.append((block, prose))
            block, prose = [""] * number, bool(re.search(r"\[(markdown|md|raw)\]", line))
        block.append(line)
    blocks.append((block, prose))
    return [
        Cell(name, "\n".join(b)) for b, is_prose in blocks if not is_prose and "".join(b).strip()
    ]


def blank_magics(source: str) -> str:
    """The cell with magics and shell lines emptied; the whole cell where it is in another language.

    A line is blanked only where Python itself stumbles over it, so ``% b`` inside brackets stays.

    >>> blank_magics("%matplotlib inline\\nx = (7\\n % 4)")
    '\\nx = (7\\n % 4)'
    """
    first = source.lstrip("\n ").split("\n", 1)[0]
    if NOT_PYTHON.match(first):
        return ""
    lines = source.split("\n")
    for _ in range(min(len(lines), 200)):
        try:
            ast.parse("\n".join(lines))
            break
        except SyntaxError as error:
            at = (error.lineno or 0) - 1
            if not (0 <= at < len(lines) and _is_magic(lines[at])):
                break
            indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
            lines[at] = f"{indent}pass" if indent else ""
    return "\n".join(lines)


def _is_magic(line: str) -> bool:
    line = line.strip()
    return bool(
        line.startswith(("%", "!", "?"))
        or line.endswith("?")
        or re.match(r"[\w, .\[\]]+=\s*[%!]", line)
    )
