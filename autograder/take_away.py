"""Takes the answer out of the box: the reference functions stay where they are and do nothing.

Deleting a name would not do: other modules, default arguments and closures hold the same function.
So the function itself is emptied: its code is replaced by one that raises, for whoever holds it.
Classes lose the code of all their methods. A function that is no Python code (one of torch's, say)
cannot be emptied; in each module that has it, one that raises stands in its place. This happens in
the child, before student code runs, never in the judge.

Leaves out: the text of the function on disk, which namespaces hide (``isolation.py``) or Landlock
closes (``landlock.py``); where the system has neither, it can be read, as anyone can on the web.
"""

import functools
import inspect
import sys
import types

from autograder.exercises import resolve

__all__ = ["files_of", "take_away"]

SENTENCE = (
    "this exercise asks you to write it: the ready-made {name} is taken away "
    "while yours is tried"
)


def take_away(path: str) -> None:
    """Empty the function or class at ``"module:attribute"``."""
    try:
        target = resolve(path)
    except (ImportError, AttributeError):
        return
    name = path.rpartition(":")[2]
    if isinstance(target, types.FunctionType | type | functools.partial) or hasattr(
        target, "__wrapped__"
    ):
        _empty(target, name, set())
        return
    instead = types.FunctionType(_raising(name, 0), {}, name)
    for module in list(sys.modules.values()):  # nothing to empty: hide it by name
        for key, value in (
            list(vars(module).items()) if isinstance(module, types.ModuleType) else ()
        ):
            if value is target and callable(target):
                setattr(module, key, instead)
            elif value is target:
                delattr(module, key)


def _empty(target, name: str, done: set) -> None:
    if id(target) in done:
        return
    done.add(id(target))
    if isinstance(target, staticmethod | classmethod | types.MethodType):
        _empty(target.__func__, name, done)
    elif isinstance(target, property):
        for part in (target.fget, target.fset):
            _empty(part, name, done)
    elif isinstance(target, functools.partial):
        _empty(target.func, name, done)
    elif isinstance(target, type) and not done - {id(target)}:
        for part in list(vars(target).values()):
            if not isinstance(part, types.FunctionType) or _of_module(part, target.__module__):
                _empty(part, name, done)
    elif isinstance(target, types.FunctionType):
        for cell in target.__closure__ or ():
            if _of_module(cell.cell_contents, target.__module__):
                _empty(cell.cell_contents, name, done)
        target.__code__ = _raising(name, len(target.__code__.co_freevars))
        target.__defaults__ = target.__kwdefaults__ = None
    if hasattr(target, "__wrapped__"):
        _empty(target.__wrapped__, name, done)


def _of_module(part, module: str) -> bool:
    """Whether ``part`` is a function written in ``module``: torch's own must go on working."""
    return isinstance(part, types.FunctionType) and part.__module__ == module


def _raising(name: str, free: int) -> types.CodeType:
    """Code that raises, with as many free variables as the code it replaces."""
    names = [f"v{i}" for i in range(free)]
    sentence = SENTENCE.format(name=f"`{name}`")
    lines = [
        "def outer():",
        *(f"    {name} = None" for name in names),
        "    def taken_away(*args, **kwargs):",
        f"        raise RuntimeError({sentence!r})",
        *(f"        {name}" for name in names),
        "    return taken_away",
    ]
    space: dict = {}
    exec("\n".join(lines), space)
    return space["outer"]().__code__


def files_of(paths) -> list[str]:
    """The source files, and their compiled copies, that hold what ``paths`` name."""
    found = set()
    for path in paths:
        try:
            target = inspect.unwrap(resolve(path))
            file = inspect.getsourcefile(target)
            found.add(file)
            found.add(getattr(sys.modules[target.__module__], "__cached__", None))
        except (ImportError, AttributeError, TypeError, KeyError):
            continue
    return sorted(filter(None, found))
