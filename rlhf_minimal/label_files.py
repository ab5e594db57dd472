"""Files of human labels: one JSON line a click, on disk before the next question is shown.

A line is never changed. Undoing writes a line too, so a file is the history of a labelling session,
and a kernel that dies in the middle of a line costs that line alone.

Leaves out: two sessions that write to one file at the same time; give each student a file.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from rlhf_minimal.preference_files import existing_file
from rlhf_minimal.preferences import Preference, SkippedRow

__all__ = [
    "CHOICES",
    "Comparison",
    "Label",
    "LabelFile",
    "comparisons",
    "labels_to_preferences",
    "read_labels",
]

CHOICES = ("first", "second", "tie")


class Comparison(NamedTuple):
    """A question to annotators: which of two answers is better? ``id`` is the same in all files."""

    id: str
    prompt: str
    first: str
    second: str


class Label(NamedTuple):
    """What one annotator said of one comparison; ``left`` says which answer stood on the left."""

    comparison: Comparison
    choice: str
    left: str
    annotator: str


def comparisons(triples) -> list[Comparison]:
    """Number (prompt, first, second) texts: every student who gets the same list has the same ids.

    >>> comparisons([("2 + 2?", "4", "5")])
    [Comparison(id='0', prompt='2 + 2?', first='4', second='5')]
    """
    asked = []
    for number, (prompt, first, second) in enumerate(triples):
        Preference(prompt, first, second)  # two different texts, none of them empty
        asked.append(Comparison(str(number), prompt, first, second))
    return asked


class LabelFile:
    """A file to which labels are appended; what stands in it already is in ``labels``.

    Args:
        path: a JSON-lines file, made when the first label comes.

    ``skipped`` holds the lines that could not be read: the half line of a killed kernel is one.
    """

    def __init__(self, path):
        self.path = Path(path)
        exists = self.path.exists() and self.path.stat().st_size > 0
        self.labels, self.skipped = read_labels(self.path) if exists else ([], [])

    def append(self, label: Label) -> None:
        """Write one label and wait until it is on the disk."""
        texts = label.comparison._asdict()
        rest = dict(choice=label.choice, left=label.left, annotator=label.annotator)
        self._write({**texts, **rest})
        self.labels.append(label)

    def undo(self) -> Label | None:
        """Take back the last label, by one more line; returns it, or ``None`` if there is none."""
        if not self.labels:
            return None
        self._write({"undo": self.labels[-1].comparison.id})
        return self.labels.pop()

    def _write(self, row: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            before = b""
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                before = b"" if file.read(1) == b"\n" else b"\n"  # after a half-written line
            file.write(before + json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_labels(path) -> tuple[list[Label], list[SkippedRow]]:
    """The labels of a file, what was undone left out, and the lines that are no label.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    labels: list[Label] = []
    skipped: list[SkippedRow] = []
    for number, line in enumerate(existing_file(path).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError(f"the line is a JSON {type(row).__name__}, not an object")
            if "undo" in row:
                _take_back(labels, row["undo"])
            else:
                labels.append(_label(row))
        except KeyError as error:
            skipped.append(SkippedRow(number, f"the key {error} is missing"))
        except (ValueError, TypeError, RecursionError) as error:
            skipped.append(SkippedRow(number, str(error)))
    return labels, skipped


def _label(row: dict) -> Label:
    texts = [row[name] for name in Comparison._fields] + [row["annotator"]]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("id, prompt, first, second and annotator must be strings")
    if row["choice"] not in CHOICES or row["left"] not in CHOICES[:2]:
        raise ValueError(f"choice is {row['choice']!r} and left {row['left']!r}: no such answer")
    return Label(Comparison(*texts[:4]), row["choice"], row["left"], row["annotator"])


def _take_back(labels: list[Label], identity) -> None:
    """Remove the latest label of that comparison."""
    for place in range(len(labels) - 1, -1, -1):
        if labels[place].comparison.id == identity:
            del labels[place]
            return
    raise ValueError(f"undoes {identity!r}, which has no label")


def labels_to_preferences(labels) -> list[Preference]:
    """What rewards and DPO learn from: a pair a label. A tie prefers nothing and is left out.

    >>> question = Comparison("0", "2 + 2?", "4", "5")
    >>> labels = [Label(question, "first", "second", "mia"), Label(question, "tie", "first", "tom")]
    >>> labels_to_preferences(labels)
    [Preference(prompt='2 + 2?', chosen='4', rejected='5')]
    """
    pairs = []
    for (_, prompt, first, second), choice, *_ in labels:
        if choice != "tie":
            answers = (first, second) if choice == "first" else (second, first)
            pairs.append(Preference(prompt, *answers))
    return pairs
