"""What of a submission counts: imports, functions, classes and assignments of literals.

Each top-level statement is looked at by itself. What is taken is kept with the names it defines and
the names it uses, so that a box can run just what one exercise needs. Everything else (training,
plotting, calls of ``check``) does not run; the names it would have set are remembered for the
sentence "uses `beta`, which is set in cell 14".

Leaves out: running anything.
"""

import ast
import dataclasses
import re

from autograder.cells import Cell, blank_magics
from autograder.statements import defined_names, kind_of, shares_line, used_names

__all__ = ["Reading", "Statement", "needed", "read_source"]

@dataclasses.dataclass
class Statement:
    """A statement that counts: where it stands, its text, what it defines and uses."""

    label: str
    line: int
    kind: str               # "import", "star", "definition", "value"
    source: str
    defines: list[str]
    uses: list[str]


@dataclasses.dataclass
class Reading:
    """What was found in one submission."""

    statements: list[dict] = dataclasses.field(default_factory=list)
    dropped: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> label of its cell
    broken: list[dict] = dataclasses.field(default_factory=list)  # cells that are not Python

    def names(self) -> set[str]:
        """The functions and classes that are defined."""
        found = {n for s in self.statements if s["kind"] == "definition" for n in s["defines"]}
        return found | {n for cell in self.broken for n in cell["names"]}


def read_source(cells, progress=lambda index: None, skip=(), trusted=False) -> Reading:
    """Read every cell but those in ``skip``; ``progress`` hears the number of each beforehand.

    In ``trusted`` text every assignment counts, not those of literals only.

    >>> text = "import math\\ndef f(x): return math.exp(x)\\nprint(f(1))"
    >>> reading = read_source([Cell("cell 1", text)])
    >>> reading.names(), [s["kind"] for s in reading.statements]
    ({'f'}, ['import', 'definition'])
    """
    reading = Reading()
    last = {cell.source: index for index, cell in enumerate(cells)}   # a cell run twice counts once
    for index, cell in enumerate(cells):
        if index in skip:
            reading.broken.append(_broken(cell, cell.source, "this cell cannot be read at all", 1))
        elif last[cell.source] == index:
            progress(index)
            _read_cell(cell, reading, trusted)
    return reading


def _read_cell(cell: Cell, reading: Reading, trusted: bool) -> None:
    source = blank_magics(cell.source)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        _read_pieces(cell, source, error, reading)
        return
    lines = source.split("\n")
    for node in tree.body:
        _take(node, cell.label, lines, reading, trusted)


def _read_pieces(cell, source, error, reading) -> None:
    """A cell that is not Python as a whole: each top-level piece is tried alone."""
    lines = source.split("\n")
    starts = [
        i
        for i, line in enumerate(lines)
        if re.match(r"(?:(?:def|class|async|import|from)\b|@|\w+ *=)", line)
    ]
    starts = [i for k, i in enumerate(starts) if k == 0 or not lines[starts[k - 1]].startswith("@")]
    for begin, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        piece = "\n" * begin + "\n".join(lines[begin:end])
        try:
            tree = ast.parse(piece)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
            reading.broken.append(_broken(cell, piece, _say(fault), getattr(fault, "lineno", 0)))
            continue
        for node in tree.body:
            _take(node, cell.label, lines, reading)
    if not starts:
        reading.broken.append(_broken(cell, source, _say(error), getattr(error, "lineno", 0)))


def _say(error) -> str:
    return f"{type(error).__name__}: {getattr(error, 'msg', None) or error}"


def _broken(cell, source, message, line) -> dict:
    names = re.findall(r"^(?:async +)?(?:def|class) +(\w+)", source, re.MULTILINE)
    lines = source.split("\n")
    text = lines[line - 1].strip()[:200] if line and line <= len(lines) else ""
    return {
        "label": cell.label,
        "line": line or 0,
        "message": message[:300],
        "names": names,
        "text": text,
    }


def _take(node, label, lines, reading, trusted=False) -> None:
    kind = kind_of(node)
    if trusted and isinstance(node, ast.Assign):
        kind = kind or "value"
    defines = defined_names(node)
    if kind is None:
        for name in defines:
            reading.dropped[name] = label
        return
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    try:
        source = (
            ast.unparse(node)
            if shares_line(node, lines)
            else "\n".join(lines[first - 1 : node.end_lineno])
        )
    except RecursionError:
        source = "\n".join(lines[first - 1 : node.end_lineno])
    statement = Statement(label, first, kind, source, sorted(defines), sorted(used_names(node)))
    reading.statements.append(dataclasses.asdict(statement))


def needed(statements: list[dict], names) -> list[dict]:
    """The statements that ``names`` need, directly or through others, in their order.

    Of several definitions of a name the last counts, and a function or class counts more than a
    number that is later called the same. An import adds to what is bound already (``import torch``
    and ``import torch.nn`` bind one name). What defines ``names`` themselves comes last, so that
    running the cell of imports once more hides nothing.
    """
    providers: dict[str, list[int]] = {}
    functions = {n for s in statements if s["kind"] == "definition" for n in s["defines"]}
    for index, statement in enumerate(statements):
        for name in statement["defines"]:
            if statement["kind"] == "import":
                providers.setdefault(name, []).append(index)
            elif statement["kind"] == "definition" or name not in functions:
                providers[name] = [index]
    wanted = {i for i, s in enumerate(statements) if s["kind"] == "star"}
    open_names, seen = list(names), set()
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        for index in providers.get(name, []):
            if index not in wanted:
                wanted.add(index)
                open_names.extend(statements[index]["uses"])

    def asked_for(index):
        own = statements[index]
        return own["kind"] == "definition" and any(name in own["defines"] for name in names)

    return [statements[i] for i in sorted(wanted, key=lambda i: (asked_for(i), i))]
