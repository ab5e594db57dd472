"""Small wrong changes of a reference, made by machine: an operator swapped, a mask dropped, an axis
changed.

A test that cannot tell the reference from such a mutant would not tell a student's slip either.
Checks of arguments (``check_…`` calls, branches that only raise), defaults and docstrings are left
as they are.

Leaves out: changes in functions that the reference calls; more than one change at a time.
"""

import ast
import copy
import dataclasses
import inspect
import textwrap

__all__ = ["Mutant", "mutants_of"]

OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Lt: ast.LtE, ast.LtE: ast.Lt,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or,
    ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}
NAMES = {
    "mean": "sum", "sum": "mean", "max": "min", "min": "max", "argmax": "argmin",
    "argmin": "argmax", "maximum": "minimum", "minimum": "maximum", "softmax": "log_softmax",
    "log_softmax": "softmax", "logsigmoid": "sigmoid", "sigmoid": "logsigmoid", "exp": "log",
    "log": "exp", "std": "var", "var": "std", "cumsum": "cumprod", "any": "all", "all": "any",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "zeros": "ones", "ones": "zeros",
    "floor": "ceil", "ceil": "floor", "tril": "triu", "triu": "tril", "append": "remove",
    "sorted": "list", "logsumexp": "sum",
}
DROPPED = {
    "detach", "clone", "masked_fill", "clamp", "clamp_min", "clamp_max", "abs", "flip", "sort",
    "square", "sqrt", "log", "exp", "softmax", "log_softmax", "strip", "lower", "float",
    "contiguous", "squeeze", "unsqueeze", "cumsum", "roll", "neg",
}


@dataclasses.dataclass
class Mutant:
    """A changed reference and what was changed: ``"a - b" becomes "a + b"``."""

    description: str
    function: object


def mutants_of(reference) -> list[Mutant]:
    """Every one-step change of a function's or class's own source; those that do not compile are
    left out.
    """
    original = inspect.unwrap(reference)
    tree = ast.parse(textwrap.dedent(inspect.getsource(original)))
    definition = tree.body[0]
    definition.decorator_list = [
        d for d in definition.decorator_list if not ast.unparse(d).endswith(".reference")
    ]
    space = _globals_of(original)
    found, seen = [], set()
    for index, changes in enumerate(map(_changes, list(_open_nodes(definition)))):
        for number in range(len(changes)):
            changed = copy.deepcopy(tree)
            node = list(_open_nodes(changed.body[0]))[index]
            before = ast.unparse(node)
            after = _changes(node)[number]()
            if after is not None:
                changed = _Replace(node, after).visit(changed)
            text = f"`{_short(before)}` becomes `{_short(ast.unparse(after or node))}`"
            mutant = _compiled(changed, definition.name, space)
            whole = ast.unparse(changed)
            if mutant is not None and whole not in seen:
                seen.add(whole)
                found.append(Mutant(text, mutant))
    return found


def _globals_of(original) -> dict:
    if isinstance(original, type):
        import sys

        return vars(sys.modules[original.__module__])
    return original.__globals__


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 90 else text[:87] + "..."


def _compiled(tree, name, space):
    try:
        ast.fix_missing_locations(tree)
        own = dict(space)
        exec(compile(tree, f"<mutant of {name}>", "exec"), own)
        return own[name]
    except Exception:
        return None


def _open_nodes(definition):
    """The nodes that may be changed, in a fixed order."""
    closed = set()
    for node in ast.walk(definition):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            closed.add(id(node.body[0]))
        if isinstance(node, ast.arguments):
            closed.add(id(node))
        if isinstance(node, ast.If) and all(isinstance(part, ast.Raise) for part in node.body):
            closed |= {id(node.test), *(id(part) for part in node.body)}
            if not node.orelse:
                closed.add(id(node))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) \
                and ast.unparse(node.value.func).rpartition(".")[2].startswith("check_"):
            closed.add(id(node))
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
            closed.add(id(node))
        if isinstance(node, ast.FunctionDef):
            closed |= {
                id(part) for part in [node.returns, *node.decorator_list] if part is not None
            }
        if isinstance(node, ast.AnnAssign):
            closed.add(id(node.annotation))

    def walk(node):
        if id(node) in closed:
            return
        yield node
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(definition)


def _changes(node) -> list:
    """What can be done to a node: functions that return its replacement, or change it and return
    None.
    """
    changes = []
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        changes.append(lambda: _set(node, "op", OPERATORS[type(node.op)]()))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for side, other in ((node.left, node.right), (node.right, node.left)):
            if "mask" in ast.unparse(side) and isinstance(
                side, ast.Name | ast.Attribute | ast.Subscript
            ):
                changes.append(lambda other=other: other)
    if isinstance(node, ast.BoolOp) and type(node.op) in OPERATORS:
        changes.append(lambda: _set(node, "op", OPERATORS[type(node.op)]()))
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        changes.append(lambda: _set(node, "ops", [OPERATORS[type(node.ops[0])](), *node.ops[1:]]))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        changes.append(lambda: node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        changes.append(lambda: ast.Constant(_other(node.value)))
    if isinstance(node, ast.IfExp):
        changes += [lambda: node.body, lambda: node.orelse]
    if isinstance(node, ast.Call):
        changes += _call_changes(node)
    return changes


def _other(value):
    if type(value) is bool:
        return not value
    if type(value) is int:
        return value + 1
    return value * 2 if value else 1.0


def _call_changes(node: ast.Call) -> list:
    changes, function = [], node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    method = isinstance(function, ast.Attribute) and not _is_module(function.value)
    if name in NAMES and isinstance(function, ast.Attribute):
        changes.append(lambda: _set(function, "attr", NAMES[name]))
    elif name in NAMES:
        changes.append(lambda: _set(function, "id", NAMES[name]))
    if name in DROPPED:
        inner = function.value if method else (node.args[0] if node.args else None)
        if inner is not None:
            changes.append(lambda: inner)
    for keyword in node.keywords:
        if keyword.arg in ("keepdim", "dim", "unbiased", "correction"):
            rest = [other for other in node.keywords if other is not keyword]
            changes.append(lambda rest=rest: _set(node, "keywords", rest))
    return changes


def _is_module(node) -> bool:
    return ast.unparse(node) in (
        "torch",
        "F",
        "functional",
        "torch.nn.functional",
        "math",
        "np",
        "nn",
    )


def _set(node, field, value):
    setattr(node, field, value)


class _Replace(ast.NodeTransformer):
    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else self.generic_visit(node)
