"""The marked regions of a lesson's source: what becomes a stub, and what is shown as worked answer.

Leaves out: notebooks (``build.py``).
"""

import ast
import re

__all__ = ["answer_text", "stubbed", "without_markers"]

BEGIN = re.compile(r"^(?P<indent>\s*)# SOLUTION\b")
END = re.compile(r"^\s*# END SOLUTION\b")
STUB = re.compile(r"^(?P<indent>\s*)# STUB ?(?P<line>.*)$")
def answer_text(node, lines) -> str:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    drop = set()
    if ast.get_docstring(node) is not None:
        drop = set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    kept = [lines[n - 1] for n in range(first, node.end_lineno + 1) if n not in drop]
    return "\n".join(without_markers(kept)).strip("\n")


def without_markers(lines) -> list[str]:
    return [
        line for line in lines if not (BEGIN.match(line) or END.match(line) or STUB.match(line))
    ]


def stubbed(source: str, place: str = "") -> str:
    """The cell with each marked region replaced by its ``# STUB`` lines, or by a raise.

    >>> print(stubbed("def f(x):\\n    # SOLUTION\\n    return 2 * x\\n    # END SOLUTION"))
    def f(x):
        raise NotImplementedError("write f here")
    """
    result, region = [], None
    for number, line in enumerate(source.split("\n"), 1):
        if match := BEGIN.match(line):
            if region is not None:
                raise ValueError(f"{place}: # SOLUTION inside # SOLUTION")
            region = {"indent": match["indent"], "line": number, "stub": []}
        elif END.match(line):
            if region is None:
                raise ValueError(f"{place}: # END SOLUTION without # SOLUTION")
            result += region["stub"] or _raise(source, region)
            region = None
        elif region is None:
            result.append(line)
        elif match := STUB.match(line):
            region["stub"].append(f"{match['indent']}{match['line']}".rstrip())
    if region is not None:
        raise ValueError(f"{place}: # SOLUTION without # END SOLUTION")
    return "\n".join(result)


def _raise(source: str, region) -> list[str]:
    """The stub of a region inside a function; nothing for one at the top of a cell."""
    inside = [
        node for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.lineno <= region["line"] <= node.end_lineno
    ]
    if not inside:
        return []
    return [f'{region["indent"]}raise NotImplementedError("write {inside[-1].name} here")']
