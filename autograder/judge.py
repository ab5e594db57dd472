"""Decides. The judge asks the box for evidence, holds it against the reference's, and gives the
verdict.

It never runs student code and reads nothing of a submission but frames, which are data. What cannot
be decided through our own fault is ``ungraded``, never zero.

Leaves out: words (``diagnosis.py``); where submissions come from and where results go.
"""

import secrets
import time

from autograder.diagnosis import explain, explain_end
from autograder.exercises import Exercise
from autograder.expectation import Expectation, same
from autograder.lessons import (
    ONE_AT_A_TIME,
    Lesson,
    lesson_of,
    modules_of,
    slow_modules,
    source_of,
)
from autograder.reading import Reading, needed
from autograder.replies import collect, is_reading, text_of
from autograder.results import Result, Submission
from autograder.runner import Lost

__all__ = ["Judge", "fresh_seed"]

READ_LIMITS = {"seconds": 20, "memory_mb": 1500}
BROKEN_CELLS = 5                # how many cells that crash the reader are set aside, one by one


def fresh_seed() -> str:
    """Entropy for one run."""
    return secrets.token_hex(8)


class Judge:
    """Judges submissions of the given lessons with one runner and one seed.

    Judges of one run may share their ``expectations``: same seed, same cases, worked out once.
    """

    def __init__(self, runner, lessons: list[Lesson], seed: str | None = None, expectations=None):
        self.runner, self.lessons = runner, lessons
        self.seed = str(seed) if seed is not None else fresh_seed()
        self.expectations: dict[str, Expectation] = {} if expectations is None else expectations
        self.prepared: set[str] = set()         # exercises whose modules this runner has
        self.probes: dict[str, list[dict]] = {}

    # -- reading --------------------------------------------------------------------------------

    def read(self, name: str, files=(), cells=()) -> Submission:
        """Read files (name and bytes) or cells (label and source), in a box of their own."""
        skip: list[int] = []
        while True:
            request = {"job": "read", "name": "", "files": list(files), "cells": list(cells)}
            reply = self.runner.ask({**request, "skip": skip, **READ_LIMITS})
            found = reply.find("reading")
            reached = [f["cell"] for f in reply.frames if isinstance(f, dict) and "cell" in f]
            if found is not None or not reached or len(skip) >= BROKEN_CELLS:
                break
            skip.append(reached[-1])  # this cell crashes whoever reads it
        notes = [
            str(f["unreadable"]) for f in reply.frames if isinstance(f, dict) and "unreadable" in f
        ]
        if found is None:
            notes.append(f"the file could not be read ({reply.ending.get('end')})")
        reading = Reading(**found) if is_reading(found) else Reading()
        return Submission(name, reading, notes, [f[0] for f in files])

    def lesson_for(self, submission: Submission) -> Lesson | None:
        """Which lesson the submission's functions belong to."""
        filename = submission.filenames[0] if submission.filenames else ""
        return lesson_of(submission.reading.names(), self.lessons, filename)

    # -- judging --------------------------------------------------------------------------------

    def exercise_named(self, name: str, lesson: str) -> Exercise | None:
        """The exercise called ``name``: this lesson's, or the nearest earlier one's."""
        found = [ex for part in self.lessons for ex in part.exercises if ex.name == name]
        earlier = [ex for ex in found if ex.lesson <= lesson]
        return max(earlier or found, key=lambda ex: ex.lesson, default=None)

    def expectation(self, exercise: Exercise) -> Expectation:
        if exercise.title not in self.prepared:
            self.runner.preload(modules_of(exercise))
            self.prepared.add(exercise.title)
        with ONE_AT_A_TIME:                     # other judges of this run may share them
            if exercise.title not in self.expectations:
                used = {name: self.exercise_named(name, exercise.lesson) for name in exercise.uses}
                others = {name: ex.answer() for name, ex in used.items() if ex is not None}
                self.expectations[exercise.title] = Expectation(exercise, self.seed, others)
        return self.expectations[exercise.title]

    def judge(self, submission: Submission, exercise: Exercise) -> Result:
        """The result of one exercise; remembered, since later ones may ask for it."""
        if exercise.title not in submission.results:
            started = time.monotonic()
            try:
                result = self._decide(submission, exercise)
            except Exception as error:  # ours, whatever it is: never a zero
                result = self._result(
                    exercise, "ungraded", headline=f"{type(error).__name__}: {error}"[:500]
                )
            result.seconds = round(time.monotonic() - started, 3)
            submission.results[exercise.title] = result
        return submission.results[exercise.title]

    def _result(self, exercise, verdict, **more) -> Result:
        points = exercise.points if verdict == "right" else 0
        return Result(
            exercise.lesson, exercise.number, exercise.name, verdict, more.pop("points", points),
            exercise.points, seed=self.seed, **more,
        )

    def _decide(self, submission: Submission, exercise: Exercise) -> Result:
        expectation = self.expectation(exercise)
        first = self._try(submission, exercise, expectation, {})
        if first.verdict in ("right", "ungraded", "missing", "not attempted"):
            return first
        wrong = [
            name for name in exercise.uses if not self._used_is_right(submission, exercise, name)
        ]
        if not wrong:
            return first
        again = self._try(submission, exercise, expectation, self._stand_ins(exercise, wrong))
        if again.points <= first.points:
            return first
        names = ", ".join(f"`{name}`" for name in wrong)
        again.hints.insert(
            0, f"Judged with the reference for {names}, which is counted on its own."
        )
        again.carried = wrong
        return again

    def _used_is_right(self, submission, exercise, name) -> bool:
        earlier = self.exercise_named(name, exercise.lesson)
        return earlier is None or self.judge(submission, earlier).right

    def _stand_ins(self, exercise, names) -> dict:
        """References that stand in for earlier exercises: by path, or as source text."""
        found = {name: self.exercise_named(name, exercise.lesson) for name in names}
        return {
            name: ex.reference_path
            if ex.local_reference is None
            else [*source_of(ex.local_reference, ex.file), _renamed(ex.local_reference, name)]
            for name, ex in found.items()
        }

    def _try(self, submission, exercise, expectation, stand_ins) -> Result:
        reading = submission.reading
        defined = {name for s in reading.statements for name in s["defines"]}
        if exercise.name not in defined:
            return self._undefined(submission, exercise)
        request = self._request(reading, exercise, expectation, stand_ins)
        for _ in (1, 2):  # what died may have died through us: once more
            reply = self.runner.ask(request)
            if reply.has("end") or (
                reply.has("ready") and reply.ending["end"] in ("timeout", "flood", "memory")
            ):
                break
            if reply.has("memory"):
                break
        if not reply.has("ready"):
            raise Lost(f"the box did not come up: {reply.ending}")
        return self._weigh(reply, exercise, expectation)

    def _undefined(self, submission, exercise) -> Result:
        for cell in submission.reading.broken:
            if exercise.name in cell["names"]:
                text = f"{cell['label']} cannot be read: {cell['message']}"
                line = [[cell["label"], cell["line"], "", cell["text"]]]
                return self._result(exercise, "error", headline=text, traceback=line)
        hints = [f"This submission could not be read: {note}." for note in submission.notes]
        text = f"There is no function `{exercise.name}` here."
        return self._result(exercise, "missing", headline=text, hints=hints)

    def _request(self, reading, exercise, expectation, stand_ins) -> dict:
        own = [s for s in reading.statements if not _defines_any(s, stand_ins)]
        statements = needed(own, [exercise.name, *exercise.uses])
        self.runner.preload(slow_modules(statements))
        answer = [exercise.reference_path] if exercise.reference_path else []
        return {
            "job": "probe", "name": exercise.name, "statements": statements,
            "dropped": reading.dropped, "probes": self._probes(exercise),
            "cases": [case.data for case in expectation.cases], "stand_ins": stand_ins,
            "take": [*answer, *exercise.takes_away],
            "seconds": exercise.seconds, "memory_mb": exercise.memory_mb,
        }

    def _probes(self, exercise) -> list[dict]:
        """The probes as source text for the box."""
        if exercise.title not in self.probes:
            self.probes[exercise.title] = [
                {"name": p.name, "statements": source_of(p.function, exercise.file)}
                for p in exercise.probes
            ] or [{"name": "value", "statements": []}]
        return self.probes[exercise.title]

    def _weigh(self, reply, exercise, expectation) -> Result:
        """The verdict on what came back."""
        found = collect(reply, expectation)
        points = exercise.points_of()
        right = {
            probe: all(got is not None and same(want, got, expectation.tolerances[probe])
                       for want, got in zip(wanted, found[probe], strict=True))
            for probe, wanted in expectation.right.items()
        }
        if all(right.values()):
            return self._result(
                exercise, "right", headline="Right.", stdout=text_of(reply.find("stdout"))
            )
        earned = sum(points[probe] for probe, ok in right.items() if ok) if exercise.split else 0
        words = explain_end(reply, exercise, found) or explain(exercise, expectation, found)
        words.setdefault("stdout", text_of(reply.find("stdout")))
        return self._result(exercise, words.pop("verdict"), points=earned, **words)


def _defines_any(statement: dict, names) -> bool:
    """Whether a function that is stood in for is defined here: even defining it may do harm."""
    return statement["kind"] == "definition" and any(name in names for name in statement["defines"])


def _renamed(reference, name: str) -> dict:
    """The statement that gives a reference from a test file the name of its exercise."""
    own = reference.__name__
    return {
        "label": "the reference", "line": 1, "kind": "value", "source": f"{name} = {own}",
        "defines": [name], "uses": [own],
    }
