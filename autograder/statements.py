"""One top-level statement: whether it counts, what it defines, what it uses.

Leaves out: cells and notebooks (``reading.py``).
"""

import ast
import builtins
import re

__all__ = ["defined_names", "kind_of", "shares_line", "used_names"]

SAFE_CALLS = {
    "float",
    "int",
    "complex",
    "str",
    "bool",
    "tuple",
    "list",
    "dict",
    "set",
    "frozenset",
    "range",
    "len",
    "min",
    "max",
    "namedtuple",
    "TypeVar",
    "NewType",
    "object",
    "sum",
    "abs",
    "round",
}
SAFE_MODULES = {"math", "collections", "typing", "functools"}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
def shares_line(node, lines) -> bool:
    """Whether other statements stand on the node's lines (``a = 1; b = 2``)."""
    if node.col_offset:
        return True
    rest = (
        lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode("utf-8", "ignore").strip()
    )
    return bool(rest) and not rest.startswith("#")


def kind_of(node) -> str | None:
    """What sort of statement counts; None for one that does not run."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return "star" if any(alias.name == "*" for alias in node.names) else "import"
    if isinstance(node, DEFINITIONS):
        return "definition"
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is None or not all(_plain_target(t) for t in targets):
            return None
        if isinstance(node.value, ast.Lambda):
            return "definition"
        return "value" if _literal(node.value) else None
    if isinstance(node, ast.Try):
        inner = [
            *node.body,
            *node.orelse,
            *node.finalbody,
            *(s for h in node.handlers for s in h.body),
        ]
        kinds = {kind_of(s) for s in inner if not isinstance(s, ast.Pass)}
        return None if None in kinds else "definition" if "definition" in kinds else "import"
    if isinstance(node, ast.If) and isinstance(node.test, ast.Constant):
        kinds = {kind_of(s) for s in [*node.body, *node.orelse] if not isinstance(s, ast.Pass)}
        return None if None in kinds or not kinds else "definition"
    return None


def _plain_target(target) -> bool:
    if isinstance(target, (ast.Tuple, ast.List)):
        return all(map(_plain_target, target.elts))
    return isinstance(target, ast.Name)


def _literal(node) -> bool:
    """Numbers, texts, containers and arithmetic of these; names and attributes; a few harmless
    calls.
    """
    if isinstance(node, (ast.Constant, ast.Name)):
        return True
    if isinstance(node, ast.Attribute):
        return _literal(node.value) and not isinstance(node.value, ast.Constant)
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return all(map(_literal, node.elts))
    if isinstance(node, ast.Dict):
        return all(k is not None and _literal(k) for k in node.keys) and all(
            map(_literal, node.values)
        )
    if isinstance(node, ast.UnaryOp):
        return _literal(node.operand)
    if isinstance(node, ast.BinOp):
        return _literal(node.left) and _literal(node.right)
    if isinstance(node, ast.Subscript):
        return _literal(node.value) and _literal(node.slice)
    if isinstance(node, ast.Call):
        return _harmless(node.func) and all(
            map(_literal, [*node.args, *(k.value for k in node.keywords)])
        )
    return False


def _harmless(function) -> bool:
    if isinstance(function, ast.Name):
        return function.id in SAFE_CALLS
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and (
            function.value.id in SAFE_MODULES
            or (function.value.id, function.attr) == ("torch", "device")
        )
    )


def defined_names(node) -> set[str]:
    """The names that a top-level statement binds."""
    if isinstance(node, DEFINITIONS):
        return {node.name}
    found = set()
    for part in ast.walk(node) if not isinstance(node, ast.Expr) else ():
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            found.add(part.id)
        elif isinstance(part, (ast.Import, ast.ImportFrom)):
            found |= {(a.asname or a.name.split(".")[0]) for a in part.names if a.name != "*"}
        elif isinstance(part, DEFINITIONS) and part is not node:
            found.add(part.name)
    return found


def used_names(node) -> set[str]:
    """Every name that may be looked up, texts that look like names included."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif (
            isinstance(part, ast.Constant)
            and isinstance(part.value, str)
            and part.value.isidentifier()
        ):
            found.add(part.value)
        elif (
            isinstance(part, ast.Constant) and isinstance(part.value, str) and len(part.value) < 200
        ):
            found |= (
                set(re.findall(r"[A-Za-z_]\w*", part.value)) if " " not in part.value else set()
            )
    return found - set(dir(builtins))
