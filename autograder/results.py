"""What is known about a submission: what was read of it, and the verdict on each exercise.

Leaves out: how a verdict comes about (``judge.py``).
"""

import dataclasses

from autograder.reading import Reading

__all__ = ["Result", "Submission", "place"]


def place(title):
    """Where an exercise ``(number, name)`` stands in its course: 07.2 before 07.10."""
    return [int(part) for part in title[0].split(".")], title[1]


@dataclasses.dataclass
class Result:
    """The verdict on one exercise of one submission, with everything that feedback shows."""

    lesson: str
    number: str
    exercise: str
    verdict: str
    points: float
    out_of: float
    mistake: str = ""
    seconds: float = 0.0
    headline: str = ""
    hints: list = dataclasses.field(default_factory=list)
    case: str = ""
    expected: str = ""
    got: str = ""
    traceback: list = dataclasses.field(default_factory=list)
    stdout: str = ""
    carried: list = dataclasses.field(default_factory=list)
    seed: str = ""

    @property
    def right(self) -> bool:
        return self.verdict == "right"


@dataclasses.dataclass
class Submission:
    """What was read of one submission, and what has been decided about it."""

    name: str
    reading: Reading
    notes: list = dataclasses.field(default_factory=list)
    filenames: list = dataclasses.field(default_factory=list)
    results: dict = dataclasses.field(default_factory=dict)
