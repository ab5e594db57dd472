"""Declaring an exercise: its name and points, where the reference is, cases, probes, known
mistakes.

An author writes, in ``tests/exercises/test_07_dpo.py``::

    dpo_loss = exercise("dpo_loss", number="07.2", points=3, reference="rlhf_minimal.dpo:dpo_loss")

    @dpo_loss.cases(visible=4, fresh=12)
    def cases(g): ...

    @dpo_loss.probe
    def probe(answer, case): ...

    @dpo_loss.mistake("One sentence that says what went wrong and what it does to training.")
    def flipped(...): ...

A probe travels to the box as source text, with the imports and helpers of its file that it uses.

Leaves out: judging (``judge.py``); finding the files (``lessons.py``).
"""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace

from autograder.evidence import copies
from autograder.generator import Generator, seed_of

__all__ = ["Case", "Exercise", "Mistake", "Probe", "exercise", "resolve"]

VISIBLE_SEED = "visible"


@dataclasses.dataclass(frozen=True)
class Case:
    """One input of an exercise; ``visible`` ones are fixed and shown to students."""

    index: int
    visible: bool
    data: dict


@dataclasses.dataclass(frozen=True)
class Probe:
    """A function ``probe(answer, case)`` that gathers evidence, and the points it carries, if its
    own.
    """

    name: str
    function: Callable
    points: float | None = None


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A wrong implementation that students really write, and the sentence that says what is wrong.
    """

    name: str
    sentence: str
    function: Callable


class Exercise:
    """One function (or class) that students write.

    Args:
        name: the name students give it; it is found by this name alone.
        number: lesson and place, ``"07.2"``.
        points: what it is worth; all or nothing, unless its probes carry points of their own.
        reference: ``"module:attribute"`` of the right answer; or None, and then ``@ex.reference``
            marks a function in the test file. It is taken away in the box.
        uses: names of earlier exercises this one builds on. The student's own are tried first;
            where one of them is wrong, the reference stands in for it (error carried forward).
        seconds: computing time for all cases together; waiting may take longer. memory_mb: what the
            function may allocate beyond what torch itself takes. tolerance: ``(absolute, reason)``,
            or a dictionary from the start of an evidence path to such pairs; without it the
            tolerance comes from float32 against float64 of the reference.
        any_dtype: accept float64 where the reference gives float32 and the like.
        takes_away: further ``"module:attribute"`` names that would give the answer away.
    """

    def __init__(
        self, name, number, points, reference=None, *, uses=(), seconds=5, memory_mb=512,
        tolerance=None, any_dtype=False, takes_away=(), file=None,
    ):
        self.name, self.number, self.points = name, str(number), points
        self.reference_path = reference
        self.uses = tuple(uses)
        self.seconds, self.memory_mb = seconds, memory_mb
        self.tolerance = _checked_tolerance(name, tolerance)
        self.any_dtype = any_dtype
        self.takes_away = tuple(takes_away)
        self.file = file
        self.visible, self.fresh = 4, 12
        self.make = None
        self.probes: list[Probe] = []
        self.mistakes: list[Mistake] = []
        self.equivalents: dict[str, str] = {}
        self.local_reference = None
        if not self.lesson.isdigit():
            raise ValueError(f"{name}: number is {number!r}; it must look like '07.2'")

    def __repr__(self):
        return f"<exercise {self.number} {self.name}>"

    @property
    def lesson(self) -> str:
        """The lesson's two digits."""
        return self.number.split(".")[0]

    @property
    def title(self) -> str:
        return f"{self.number} {self.name}"

    # -- what the author declares ---------------------------------------------------------------

    def cases(self, visible: int = 4, fresh: int = 12):
        """Decorates the function that makes one case, a dictionary, from a :class:`Generator`."""
        self.visible, self.fresh = visible, fresh

        def keep(make):
            self.make = make
            return make

        return keep

    def probe(self, function=None, *, points=None):
        """Decorates ``probe(answer, case)``; with ``points=`` it earns those by itself."""
        if function is None:
            return functools.partial(self.probe, points=points)
        self.probes.append(Probe(function.__name__, function, points))
        return function

    def mistake(self, sentence: str):
        """Decorates a known wrong implementation; ``sentence`` tells the student what is wrong."""

        def keep(function):
            self.mistakes.append(Mistake(function.__name__, sentence, function))
            return function

        return keep

    def reference(self, function):
        """Decorates the right answer, for an exercise that the package has no function for."""
        self.local_reference = function
        return function

    def equivalent(self, mutant: str, reason: str):
        """Lists a mutant of the reference (as ``prove`` prints it, or part of that) that changes
        nothing.
        """
        self.equivalents[mutant] = reason

    # -- what the judge asks --------------------------------------------------------------------

    def answer(self) -> Callable:
        """The reference."""
        if self.local_reference is not None:
            return self.local_reference
        return resolve(self.reference_path)

    def all_probes(self) -> list[Probe]:
        """The probes; without any, calling the function with the case's values is the probe."""
        return self.probes or [Probe("value", functools.partial(plain_probe, self.name))]

    def points_of(self) -> dict[str, float]:
        """The points of each probe; probes without points of their own share what is left."""
        probes = self.all_probes()
        own = sum(p.points for p in probes if p.points is not None)
        sharing = sum(p.points is None for p in probes)
        rest = (self.points - own) / sharing if sharing else 0
        return {p.name: rest if p.points is None else p.points for p in probes}

    @property
    def split(self) -> bool:
        """Whether part of the points can be earned."""
        return any(p.points is not None for p in self.probes)

    def make_cases(self, seed, fresh: int | None = None) -> list[Case]:
        """The visible cases, then ``fresh`` ones drawn from ``seed``."""
        if self.make is None:
            raise ValueError(f"{self.title} declares no cases; add @{self.name}.cases()")
        fresh = self.fresh if fresh is None else fresh
        cases = [self._case(i, VISIBLE_SEED, (i + 1) / self.visible) for i in range(self.visible)]
        return cases + [self._case(self.visible + i, seed, 1.0) for i in range(fresh)]

    def _case(self, index, seed, scale) -> Case:
        g = Generator(seed_of(self.number, self.name, seed, index), scale)
        data = self.make(g)
        if type(data) is not dict:
            raise TypeError(f"{self.title}: cases() gave a {type(data).__name__}, not a dict")
        return Case(index, seed == VISIBLE_SEED, data)


def _checked_tolerance(name, tolerance):
    if tolerance is None:
        return {}
    table = tolerance if isinstance(tolerance, dict) else {"": tolerance}
    for place, pair in table.items():
        if not (isinstance(pair, tuple) and len(pair) == 2 and str(pair[1]).strip()):
            raise ValueError(
                f"{name}: tolerance{place and f' of {place!r}'} is {pair!r}; "
                "give (number, 'the reason for it')"
            )
    return table


def exercise(name: str, *, number: str, points: float, reference: str | None = None, **options):
    """Declare an exercise; see :class:`Exercise` for the options.

    >>> exercise("win_rate", number="00.3", points=2, reference="statistics:mean")
    <exercise 00.3 win_rate>
    """
    file = sys._getframe(1).f_globals.get("__file__")
    return Exercise(name, number, points, reference, file=file, **options)


def resolve(path: str):
    """The object at ``"module:attribute"``.

    >>> resolve("statistics:mean")([1, 2, 3])
    2
    """
    module, _, attribute = path.partition(":")
    target = importlib.import_module(module)
    for part in attribute.split("."):
        target = getattr(target, part)
    return target


def plain_probe(name: str, answer: SimpleNamespace, case: dict) -> dict:
    """The probe of an exercise that declares none: the value, and what became of the inputs."""
    inputs = copies(case)
    return {"value": getattr(answer, name)(**inputs), "inputs_after": inputs}
