"""A class of made-up notebooks of one lesson, and the marks that each of them deserves.

Right answers come from the lesson's own source, with local names, comments and other cells changed;
wrong ones are the bank's known mistakes; hostile and unlucky ones are listed in
``made_trouble.py``. What is deserved is known from how a notebook was made, never from grading it.

Leaves out: grading (``grading.py``).
"""

import ast
import base64
import copy
import dataclasses
import functools
import json
import random
import re
from pathlib import Path

from made_trouble import FILES, FUNCTIONS

from autograder.lessons import add_to_path, load_course
from autograder.regions import without_markers
from autograder.statements import defined_names, used_names

__all__ = ["Deserved", "Student", "make_class"]

FIRST = [
    "Ada", "Alan", "Amara", "Chen", "Dora", "Emmy", "Fatima", "Grace", "Hiro", "Inés", "Jonas",
    "Kofi", "Lise", "Zoë", "Noor", "Omar",
]
LAST = [
    "Abara", "Berg", "Castro", "Dubois", "Eriksen", "Fischer", "Ito", "Kaya", "Li", "Moreau",
    "Nkosi", "O'Hara", "Park", "Rossi",
]
SHARES = (("right", 0.38), ("half", 0.23), ("wrong", 0.20), ("trouble", 0.19))


@dataclasses.dataclass
class Deserved:
    """What one exercise of one student must get."""

    verdicts: set
    points: float
    mistake: str = ""


@dataclasses.dataclass
class Student:
    """One made-up submission; ``deserved`` is empty where nothing of it can be read."""

    name: str
    kind: str
    notebook: dict
    deserved: dict


RIGHT, STUB = {"right"}, {"not attempted"}


class Lesson:
    """What is needed of one lesson: its notebook with stubs, right answers, known mistakes."""

    def __init__(self, root: Path, number: str):
        add_to_path(root)
        self.exercises = load_course(root, number)[0].exercises
        (path,) = (root / "lessons").glob(f"{number}_*.ipynb")
        self.stubs = json.loads(path.read_text(encoding="utf-8"))
        (path,) = (root / "solutions").glob(f"{number}_*.py")
        text = path.read_text(encoding="utf-8")
        self.right = {ex.name: _cell_defining(text, ex.name) for ex in self.exercises}
        self.mistakes = {ex.name: dict(_mistakes(ex)) for ex in self.exercises}


def _cell_defining(text: str, name: str) -> str:
    """The cell of a percent-format source that defines ``name``, with the answer in it."""
    for cell in text.split("\n# %%"):
        if _defines(cell, name):
            return "\n".join(without_markers(cell.split("\n")[1:])).strip()
    raise ValueError(f"no cell defines {name}")


def _defines(text: str, name: str) -> bool:
    return re.search(rf"^(def|class) {name}\b", text, re.MULTILINE) is not None


def _mistakes(exercise):
    """Each known mistake as the source of a cell.

    Left out are those that need the answer or are made by another decorator, and exercises whose
    points are split: there a mistake may deserve some.
    """
    if exercise.split:
        return
    tree = ast.parse(Path(exercise.file).read_text(encoding="utf-8"))
    providers = {name: node for node in tree.body for name in defined_names(node)}
    answers = {exercise.reference_path, *exercise.takes_away} - {None}
    for mistake in exercise.mistakes:
        decorators = getattr(providers.get(mistake.name), "decorator_list", ())
        if [ast.unparse(d).split("(")[0] for d in decorators] != [f"{exercise.name}.mistake"]:
            continue
        parts, waiting = {}, [mistake.name]
        while waiting:
            node = providers.get(waiting.pop())
            if node is not None and node.lineno not in parts:
                parts[node.lineno] = node
                waiting += used_names(_bare(node))
        text = "\n\n".join(
            ast.unparse(_bare(node, {mistake.name: exercise.name}))
            for _, node in sorted(parts.items())
        )
        if "= exercise(" not in text and not any(_imports(text, path) for path in answers):
            yield mistake.name, text


def _bare(node, renamed=None):
    """A definition without its decorators, and by its new name."""
    node = copy.deepcopy(node)
    if hasattr(node, "decorator_list"):
        node.decorator_list = []
        node.name = (renamed or {}).get(node.name, node.name)
    return node


def _imports(text: str, path: str) -> bool:
    module, _, name = path.partition(":")
    return any(
        isinstance(node, ast.ImportFrom) and node.module == module
        and any(alias.name == name for alias in node.names)
        for node in ast.walk(ast.parse(text))
    )


# -- the ways in which right answers differ -------------------------------------------------------


class _Renamed(ast.NodeTransformer):
    """Local variables get other names."""

    def __init__(self, names):
        self.names = names

    def visit_Name(self, node):
        node.id = self.names.get(node.id, node.id)
        return node


def varied(source: str, rng: random.Random) -> str:
    """The same function in somebody else's words."""
    tree = ast.parse(source)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        if rng.random() < 0.5 and ast.get_docstring(node):
            node.body = node.body[1:]
        own = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and _stored(n)}
        arguments = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
        ending = rng.choice(["_", "2", "_new", "_tensor", "ß", ""])
        _Renamed({name: name + ending for name in own - arguments}).visit(node)
    text = ast.unparse(tree)
    return rng.choice([source, text, f"# my answer\n{text}", f"import math\n\n{text}\n\n# TODO?"])


def _stored(node) -> bool:
    return isinstance(node.ctx, ast.Store)


SCRATCH = [
    "x = torch.linspace(0, 1, 5)\nprint(x)",
    "%matplotlib inline\n!pip install tqdm",
    "plt.plot([1, 2, 3]); plt.show()",
    "# does not work yet\nfor i in range(3)\n    print(i)",
    "help(torch.gather)",
    "for epoch in range(10**9):\n    pass  # trains all night",
    "df = unknown_name + 1",
    "raise SystemExit('the rest is for tomorrow')",
]


def with_noise(notebook: dict, rng: random.Random) -> dict:
    """Cells of no meaning, outputs, counts, metadata: as notebooks look when they come back."""
    cells = notebook["cells"]
    for _ in range(rng.randrange(4)):
        cells.insert(rng.randrange(2, len(cells)), code_cell(rng.choice(SCRATCH)))
    if rng.random() < 0.2:
        notebook["metadata"] |= {"colab": {"provenance": []}, "accelerator": "GPU"}
    for count, cell in enumerate(cells):
        if cell["cell_type"] == "code" and rng.random() < 0.8:
            cell["execution_count"] = count
            text = {"output_type": "stream", "name": "stdout", "text": ["done\n"]}
            cell["outputs"] = [_picture(rng) if "plt.show" in "".join(cell["source"]) else text]
    return notebook


def _picture(rng: random.Random) -> dict:
    data = base64.b64encode(rng.randbytes(rng.randrange(15_000, 60_000))).decode()
    return {"output_type": "display_data", "metadata": {}, "data": {"image/png": data}}


def code_cell(source: str) -> dict:
    return {
        "cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [],
        "source": source.splitlines(keepends=True),
    }


# -- students -------------------------------------------------------------------------------------


class Desk:
    """Where one notebook is filled in."""

    def __init__(self, lesson: Lesson, rng: random.Random):
        self.lesson, self.rng = lesson, rng
        self.notebook = copy.deepcopy(lesson.stubs)
        self.deserved = {ex.name: Deserved(STUB, 0) for ex in lesson.exercises}

    def cell_of(self, name: str) -> dict:
        return next(
            cell for cell in self.notebook["cells"] if cell["cell_type"] == "code"
            and _defines("".join(cell["source"]), name)
        )

    def write(self, name: str, source: str, verdicts, points=0.0, mistake="") -> None:
        """``source`` in place of what stands there."""
        self.cell_of(name)["source"] = source.splitlines(keepends=True)
        self.deserved[name] = Deserved(set(verdicts), points, mistake)

    def answer(self, exercise) -> None:
        source = varied(self.lesson.right[exercise.name], self.rng)
        self.write(exercise.name, source, RIGHT, exercise.points)

    def mistake(self, exercise) -> None:
        known = self.lesson.mistakes[exercise.name]
        if not known:
            return self.answer(exercise)
        name = self.rng.choice(sorted(known))
        # a wrong function that it uses changes what it gives: wrong still, and by another sentence
        named = all(self.deserved[used].verdicts == RIGHT for used in exercise.uses
                    if used in self.deserved)
        # a mistake that ends in an error is named as well
        self.write(exercise.name, known[name], {"wrong", "error"}, 0, name if named else "")


def _right(desk: Desk) -> None:
    for exercise in desk.lesson.exercises:
        desk.answer(exercise)


def _half(desk: Desk) -> None:
    exercises = desk.lesson.exercises
    done = exercises[: desk.rng.randrange(len(exercises))]
    for exercise in done:
        desk.answer(exercise)
    if done and desk.rng.random() < 0.4:
        desk.mistake(done[-1])


def _wrong(desk: Desk) -> None:
    exercises = desk.lesson.exercises
    wrong = desk.rng.sample(exercises, desk.rng.randint(1, min(4, len(exercises))))
    for exercise in exercises:
        (desk.mistake if exercise in wrong else desk.answer)(exercise)


def _trouble(desk: Desk, kind: str) -> None:
    """All right but for one function that is hostile or unlucky."""
    _right(desk)
    body, verdicts = FUNCTIONS[kind]
    name = desk.rng.choice(desk.lesson.exercises).name
    points = next(ex.points for ex in desk.lesson.exercises if ex.name == name)
    right = desk.lesson.right[name]
    desk.write(name, body(name, right), verdicts, points if verdicts == RIGHT else 0)


def _kinds(size: int) -> list[str]:
    """The class by its shares; each kind of trouble comes up before any comes up again."""
    counts = {kind: round(share * size) for kind, share in SHARES}
    counts["right"] = size - sum(counts[kind] for kind, _ in SHARES[1:])
    every, number = [*FUNCTIONS, *FILES], counts["trouble"]
    trouble = [every[i * max(len(every), number) // number % len(every)] for i in range(number)]
    plain = [kind for kind, _ in SHARES[:3] for _ in range(counts[kind])]
    return [*plain, *trouble]


def make_student(lesson: Lesson, kind: str, name: str, rng: random.Random) -> Student:
    desk = Desk(lesson, rng)
    if kind in FUNCTIONS:
        _trouble(desk, kind)
    else:
        {"half": _half, "wrong": _wrong}.get(kind, _right)(desk)
    unread = kind in FILES and not FILES[kind][1]
    return Student(
        name, kind, with_noise(desk.notebook, rng), {} if unread else dict(desk.deserved)
    )


def make_class(root, folder, lesson="01", size=200, seed=0, kinds=None) -> list[Student]:
    """Write ``size`` notebooks of ``lesson`` into ``folder``; say what each of them deserves."""
    rng, folder = random.Random(seed), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found, students = Lesson(Path(root), str(lesson).zfill(2)), []
    kinds = list(kinds or _kinds(size))
    rng.shuffle(kinds)
    for number, kind in enumerate(kinds, 1):
        name = f"{rng.choice(FIRST)} {rng.choice(LAST)} {number:03d}"
        student = make_student(found, kind, name, rng)
        save = functools.partial(json.dumps, ensure_ascii=False, indent=1)
        if kind in FILES:
            FILES[kind][0](folder / f"{name}.ipynb", student.notebook, save)
        else:
            (folder / f"{name}.ipynb").write_text(save(student.notebook), encoding="utf-8")
        students.append(student)
    return students
