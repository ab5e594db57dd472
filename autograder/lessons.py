"""Finds a course and its exercises: ``tests/exercises/test_NN_topic.py`` under the course's root.

Also takes a probe's source text out of its file, with the imports and helpers it uses and nothing
else, so that the box never sees cases, mistakes or a reference that stand in the same file.

Leaves out: judging; building notebooks.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import sys
import threading
from pathlib import Path

from autograder.cells import Cell
from autograder.exercises import Exercise
from autograder.reading import needed, read_source
from autograder.statements import used_names

__all__ = [
    "Lesson",
    "declaring",
    "find_root",
    "lesson_of",
    "load_course",
    "load_lesson",
    "modules_of",
    "slow_modules",
    "source_of",
    "undisturbed",
]

TEST_FILE = re.compile(r"test_(\d\d)_(\w+)\.py$")


@dataclasses.dataclass
class Lesson:
    """The exercises of one test file, in the order of their numbers."""

    number: str
    topic: str
    file: Path
    exercises: list[Exercise]

    def __post_init__(self):
        names = [ex.name for ex in self.exercises]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{self.file}: {sorted(twice)} are declared twice in one lesson")


def find_root(start=None) -> Path:
    """The nearest folder, from ``start`` upwards, that holds ``tests/exercises``; else the
    package's own.
    """
    start = Path(start or os.getcwd()).resolve()
    candidates = [start, *start.parents, Path(__file__).resolve().parent.parent]
    for folder in candidates:
        if (folder / "tests" / "exercises").is_dir():
            return folder
    raise FileNotFoundError(
        f"no tests/exercises in {start} or above it; "
        "run this inside the course's folder, or give --root"
    )


def add_to_path(root: Path) -> None:
    """Let the course's package be imported, here and in every box started afterwards."""
    if str(root) not in sys.path:
        sys.path.append(str(root))


def hidden_paths(root: Path) -> list[Path]:
    """The course's folders that no box needs: tests, solutions, lessons, history; packages stay."""
    needed = [Path(p).resolve() for p in [*sys.path, sys.prefix, sys.base_prefix] if p]
    return [
        path for path in sorted(Path(root).resolve().iterdir())
        if path.is_dir() and not path.is_symlink() and not (path / "__init__.py").exists()
        and not any(part == path or path in part.parents for part in needed)
    ]


def test_files(root: Path) -> list[Path]:
    """The files that declare exercises, by lesson."""
    folder = Path(root) / "tests" / "exercises"
    return sorted(path for path in folder.glob("test_*.py") if TEST_FILE.search(path.name))


def load_course(root: Path, only: str | None = None) -> list[Lesson]:
    """Every lesson of the course, or the one numbered ``only``."""
    lessons = [
        load_lesson(path) for path in test_files(root)
        if only is None or TEST_FILE.search(path.name)[1] == str(only).zfill(2)
    ]
    if not lessons:
        raise FileNotFoundError(f"no lesson {only or ''} in {Path(root) / 'tests' / 'exercises'}")
    return lessons


def load_lesson(path: Path) -> Lesson:
    """Import one test file and collect the exercises it declares."""
    return _load(Path(path).resolve(), Path(path).stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _load(path: Path, _changed: int) -> Lesson:
    number, topic = TEST_FILE.search(path.name).groups()
    add_to_path(path.parent.parent.parent)
    name = f"autograder_exercises_{number}_{topic}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Lesson(number, topic, path, exercises_in(module))


def exercises_in(module) -> list[Exercise]:
    """The exercises that a module declares."""
    found = {id(v): v for v in vars(module).values() if isinstance(v, Exercise)}
    return sorted(found.values(), key=lambda ex: [int(n) for n in ex.number.split(".")])


def declaring(root: Path, name: str) -> list[Path]:
    """The test files in which ``exercise("name"`` stands; nothing is imported."""
    pattern = re.compile(rf"exercise\(\s*['\"]{re.escape(name)}['\"]")
    return [path for path in test_files(root) if pattern.search(path.read_text(encoding="utf-8"))]


def lesson_of(names: set[str], lessons: list[Lesson], filename: str = "") -> Lesson | None:
    """The lesson that most of the functions in ``names`` belong to; the file's number decides a
    tie.
    """
    number = re.match(r"\D*(\d\d)(?!\d)", os.path.basename(filename))

    def fit(lesson):
        own = sum(ex.name in names for ex in lesson.exercises)
        return own, bool(number) and lesson.number == number[1], own / len(lesson.exercises or [1])

    best = max(lessons, key=fit, default=None)
    return best if best is not None and any(fit(best)[:2]) else None


def source_of(function, file: str) -> list[dict]:
    """``function`` as statements for the box: what it needs of its file, itself last, undecorated.

    What an exercise's decorators mark (cases, mistakes, a reference) is never among them.
    """
    path = Path(file)
    text = path.read_text(encoding="utf-8")
    line = function.__code__.co_firstlineno
    node = next(
        n for n in ast.parse(text).body
        if isinstance(n, ast.FunctionDef)
        and line in (n.lineno, *(d.lineno for d in n.decorator_list))
    )
    node.decorator_list = []
    reading = _read_file(text, path.name)
    uses = sorted(used_names(node))
    own = {
        "label": path.name, "line": node.lineno, "kind": "definition", "source": ast.unparse(node),
        "defines": [node.name], "uses": [],
    }
    parts = [s for s in needed(reading.statements, uses) if node.name not in s["defines"]]
    return [*parts, own]


def modules_of(exercise: Exercise) -> list[str]:
    """What the exercise's boxes import: done once in the zygote, so that no box has to."""
    statements = [s for probe in exercise.probes for s in source_of(probe.function, exercise.file)]
    found = [exercise.reference_path.partition(":")[0]] if exercise.reference_path else []
    for statement in statements:
        if statement["kind"] == "import":
            for node in ast.walk(ast.parse(statement["source"])):
                if isinstance(node, ast.ImportFrom) and node.module:
                    found.append(node.module)
                elif isinstance(node, ast.Import):
                    found += [alias.name for alias in node.names]
    return [*dict.fromkeys(found), *slow_modules(statements)]


def slow_modules(statements) -> list[str]:
    """What torch imports late and slowly when such statements run, at an optimizer for example."""
    words = ("optim", "torch.func", "vmap", "checkpoint", "torch.compile")
    late = any(word in statement["source"] for statement in statements for word in words)
    return ["torch._dynamo"] if late else []


@functools.lru_cache(maxsize=64)
def _read_file(text: str, name: str):
    """A test file's statements. It is ours, so any assignment counts, whatever it calls."""
    tree = ast.parse(text)
    declared = {
        target.id for node in tree.body if isinstance(node, ast.Assign) and _declares(node.value)
        for target in node.targets if isinstance(target, ast.Name)
    }
    reading = read_source([Cell(name, text)], trusted=True)
    hidden = {line for node in tree.body if (line := _marked(node, declared))}
    reading.statements = [
        s for s in reading.statements
        if s["line"] not in hidden and not declared & set(s["defines"])
    ]
    return reading


def _declares(value) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func).endswith("exercise")


def _marked(node, declared) -> int | None:
    """The first line of a definition that an exercise's decorator marks, unless it is a probe."""
    for decorator in getattr(node, "decorator_list", ()):
        words = ast.unparse(decorator).split("(")[0].split(".")
        if words[0] in declared and words[-1] != "probe":
            return node.decorator_list[0].lineno
    return None


ONE_AT_A_TIME = threading.RLock()           # torch's random numbers belong to the whole process


@contextlib.contextmanager
def undisturbed():
    """Random numbers, default dtype and gradient mode as in a fresh process, put back after."""
    import random

    import numpy
    import torch

    state, python, dtype = numpy.random.get_state(), random.getstate(), torch.get_default_dtype()
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            numpy.random.set_state(state)
            random.setstate(python)
