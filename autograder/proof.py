"""``python -m autograder prove``: that the exercises' tests are worth believing.

For every exercise: the reference agrees with itself; the solution is right and the stub not
attempted; each known mistake is killed by a case that students see, is named, and is told from
every other; answers learned by heart fail on fresh cases; functions that give zeros, constants, NaN
or their input fail; automatic mutants of the reference are killed, or listed as equivalent with a
reason.

Leaves out: whether an exercise teaches anything.
"""

import contextlib
import dataclasses
import signal
import threading
from pathlib import Path

from autograder.build import lesson_notebook, read_source_notebook
from autograder.exercises import Exercise
from autograder.expectation import Expectation, gather, same
from autograder.grading import course_runner
from autograder.impostors import impostors_of
from autograder.judge import Judge
from autograder.lessons import add_to_path, load_course, undisturbed
from autograder.mutants import mutants_of

__all__ = ["Proof", "prove", "prove_exercise"]

MUTANT_S = 5.0                  # a mutant that takes longer than this has an endless loop: killed


@dataclasses.dataclass
class Proof:
    """What was found about one exercise."""

    exercise: Exercise
    cases: int = 0
    mistakes: dict = dataclasses.field(default_factory=dict)  # name -> visible cases that kill it
    impostors: dict = dataclasses.field(default_factory=dict)    # name -> killed
    mutants: dict = dataclasses.field(default_factory=dict)      # description -> killed
    equivalent: dict = dataclasses.field(default_factory=dict)   # description -> reason
    rounding: float = 0.0
    faults: list = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """The kill table of this exercise."""
        ex = self.exercise
        killed = sum(self.mutants.values())
        listed = f" ({len(self.equivalent)} equivalent)" if self.equivalent else ""
        caught = f"{sum(map(bool, self.mistakes.values()))}/{len(self.mistakes)}"
        lines = [
            f"{'✗' if self.faults else '✓'} {ex.title}: {self.cases} cases agree, rounding "
            f"{self.rounding:.1e}; mistakes {caught}; "
            f"impostors {sum(self.impostors.values())}/{len(self.impostors)}; "
            f"mutants {killed}/{len(self.mutants)}{listed}"
        ]
        for name, cases in self.mistakes.items():
            lines.append(f"      {name}: killed by visible {' '.join(map(str, cases)) or 'NONE'}")
        lines += [
            f"      equivalent: {text} ({reason})" for text, reason in self.equivalent.items()
        ]
        return [*lines, *(f"    FAULT {fault}" for fault in self.faults)]


def prove(root: Path, number=None, *, seeds=200, mutants=True, say=print) -> int:
    """Prove every exercise of the course, or of one lesson; returns the exit code."""
    add_to_path(root)
    lessons = load_course(root)
    chosen = [part for part in lessons if number is None or part.number == str(number).zfill(2)]
    if not chosen and _has_no_exercises(Path(root), number):
        say(f"lesson {number} has no exercises: nothing to prove")
        return 0
    if not chosen:
        raise FileNotFoundError(f"no lesson {number} in {root}")
    faults = total = 0
    with course_runner(root) as runner:
        judge = Judge(runner, lessons, seed="proof")
        for lesson in chosen:
            sources = _sources(Path(root), lesson.number, judge)
            for exercise in lesson.exercises:
                proof = prove_exercise(exercise, judge, seeds=seeds, mutants=mutants)
                proof.faults += _tried(exercise, judge, sources)
                faults, total = faults + len(proof.faults), total + 1
                for line in proof.lines():
                    say(line)
    say(f"{total} exercises, {faults} faults")
    return 1 if faults else 0


def _has_no_exercises(root: Path, number) -> bool:
    """Whether the lesson is there and asks for no code: no region of its source is marked."""
    found = list((root / "solutions").glob(f"{str(number).zfill(2)}_*.py"))
    return bool(found) and not any("# SOLUTION" in path.read_text("utf-8") for path in found)


def _sources(root: Path, number: str, judge: Judge) -> dict:
    """The solution and the lesson, as two submissions."""
    found = sorted((root / "solutions").glob(f"{number}_*.py"))
    if not found:
        return {}
    notebook = read_source_notebook(found[0])
    lesson = lesson_notebook(notebook, found[0].name)
    cells = [[f"cell {n}", c.source] for n, c in enumerate(lesson.cells) if c.cell_type == "code"]
    return {
        "solution": judge.read("solution", [(found[0].name, found[0].read_bytes())]),
        "lesson": judge.read("lesson", cells=cells),
    }


def _tried(exercise, judge, sources) -> list[str]:
    """The solution must be right and the stub not attempted, both through the box."""
    if not sources:
        return [f"there is no solutions/{exercise.lesson}_….py"]
    faults = []
    for name, wanted in (("solution", "right"), ("lesson", "not attempted")):
        result = judge.judge(sources[name], exercise)
        if result.verdict != wanted:
            faults.append(f"the {name} is {result.verdict}, not {wanted}: {result.headline}")
    return faults


def prove_exercise(exercise: Exercise, judge: Judge, *, seeds=200, mutants=True) -> Proof:
    """Everything that can be proved without the lesson's own text."""
    proof = Proof(exercise)
    try:
        expectation = judge.expectation(exercise)
        _agreement(proof, exercise, expectation, seeds)
        _mistakes(proof, exercise, expectation)
        _replay(proof, exercise, expectation)
        for name, impostor in impostors_of(exercise.answer()).items():
            proof.impostors[name] = not _survives(exercise, impostor, expectation)
            if not proof.impostors[name]:
                proof.faults.append(f"a function that only gives {name} passes")
        if mutants:
            _mutants(proof, exercise, expectation)
    except Exception as error:
        proof.faults.append(f"{type(error).__name__}: {error}")
    return proof


def _agreement(proof, exercise, expectation, seeds) -> None:
    """The reference, run twice on many cases, agrees with itself; rounding is what separates
    float32.
    """
    many = Expectation(exercise, "agreement", expectation.others, fresh=seeds)
    again = gather(exercise, exercise.answer(), many.cases, many.others)
    proof.cases = len(many.cases)
    proof.rounding = max(
        (value for t in many.tolerances.values() for value in t.rounding.values()), default=0.0
    )
    if not many.agrees(again):
        proof.faults.append(
            "the reference does not agree with itself: is there randomness without a seed?"
        )


def _mistakes(proof, exercise, expectation) -> None:
    found = expectation.mistakes
    visible = [case.index for case in expectation.cases if case.visible]
    for name, evidence in found.items():
        proof.mistakes[name] = [
            index for index in visible
            if any(
                not same(right[index], evidence[probe][index], expectation.tolerances[probe])
                for probe, right in expectation.right.items()
            )
        ]
        if not proof.mistakes[name]:
            proof.faults.append(f"mistake {name} is killed by no visible case")
            continue
        named = expectation.mistake_of(evidence)
        if named is None or named.name != name:
            proof.faults.append(f"mistake {name} is taken for {named and named.name}")
        for other, theirs in found.items():
            if other != name and expectation.agrees(evidence, theirs):
                proof.faults.append(f"mistake {name} cannot be told from {other}")
    if len({m.name for m in exercise.mistakes}) != len(exercise.mistakes):
        proof.faults.append("two mistakes have one name")


def _replay(proof, exercise, expectation) -> None:
    """Answers learned by heart, from the cases of another seed, are wrong here."""
    if exercise.fresh < 1:
        proof.faults.append("there are no fresh cases: answers can be learned by heart")
        return
    other = Expectation(exercise, "learned by heart", expectation.others)
    if expectation.agrees(other.right):
        proof.faults.append("answers recorded for other cases pass: the cases hardly differ")


def _mutants(proof, exercise, expectation) -> None:
    for mutant in mutants_of(exercise.answer()):
        alive = _survives(exercise, mutant.function, expectation)
        reason = next(
            (r for text, r in exercise.equivalents.items() if text in mutant.description), None
        )
        if alive and reason:
            proof.equivalent[mutant.description] = reason
            continue
        proof.mutants[mutant.description] = not alive
        if alive:
            proof.faults.append(f"mutant survives: {mutant.description}")
    texts = [*proof.mutants, *proof.equivalent]
    for text in exercise.equivalents:
        if not any(text in description for description in texts):
            proof.faults.append(f"listed as equivalent, but there is no such mutant: {text}")


def _survives(exercise, function, expectation) -> bool:
    """Whether ``function`` is taken for the reference on every case; stops at the first that kills
    it.
    """
    for case in expectation.cases:
        try:
            with time_limit(MUTANT_S), undisturbed():
                found = gather(exercise, function, [case], expectation.others)
        except Exception:
            return False
        for probe, evidence in expectation.right.items():
            if not same(evidence[case.index], found[probe][0], expectation.tolerances[probe]):
                return False
    return True


class OutOfTime(BaseException):
    """Raised inside a mutant that takes too long; no mutant's ``except Exception`` catches it."""


@contextlib.contextmanager
def time_limit(seconds: float):
    """End what runs inside after ``seconds``; where there are no alarms, let it run."""
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(*_):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except OutOfTime:
        raise TimeoutError(f"not done after {seconds} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
