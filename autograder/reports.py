"""Writes what an instructor takes away: two tables, a page a student, a page for the class,
Gradescope's file.

Every file is written beside itself and renamed, after each submission: a reader sees an old table
or a new one, and a grader that is killed has lost the submission in hand and no other.

Leaves out: how the pages look (``pages.py``).
"""

import csv
import dataclasses
import io
import json
import os
from pathlib import Path

from autograder import pages
from autograder.cards import as_lines
from autograder.results import Result, place

__all__ = ["Record", "Reports"]

DETAILS = [
    "submission",
    "lesson",
    "number",
    "exercise",
    "verdict",
    "points",
    "out_of",
    "mistake",
    "seconds",
]


@dataclasses.dataclass
class Record:
    """Everything that is known about one submission after grading."""

    name: str
    file: str
    digest: str
    seed: str
    status: str
    notes: list = dataclasses.field(default_factory=list)
    results: list[Result] = dataclasses.field(default_factory=list)

    @property
    def total(self) -> float:
        return sum(result.points for result in self.results)

    @property
    def out_of(self) -> float:
        return sum(result.out_of for result in self.results)

    @property
    def ungraded(self) -> list[Result]:
        return [result for result in self.results if result.verdict == "ungraded"]


class Reports:
    """The folder of marks.

    Args:
        folder: where everything goes; made, readable by its owner only, where it is missing.
        facts: what holds for the whole run (seed, isolation), shown on the pages.
    """

    def __init__(self, folder, **facts):
        self.folder, self.facts = Path(folder), facts
        self.records: dict[str, Record] = {}
        if not self.folder.exists():
            self.folder.mkdir(parents=True, mode=0o700)
        for part in ("feedback", "gradescope", ".state"):
            (self.folder / part).mkdir(exist_ok=True, mode=0o700)

    def resume(self) -> dict[str, Record]:
        """The records of an earlier run in this folder."""
        for path in sorted((self.folder / ".state").glob("*.json")):
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                data["results"] = [Result(**result) for result in data["results"]]
                record = Record(**data)
            except (ValueError, KeyError, TypeError):
                continue  # cut short, or of another version: graded anew
            self.records[record.name] = record
        return self.records

    def forget(self, names) -> None:
        """Drop the records of submissions that are no longer among those to be graded."""
        self.records = {name: record for name, record in self.records.items() if name in names}

    def add(self, record: Record, last: bool = True) -> None:
        """Keep one record and write its own files; with ``last`` the tables too."""
        self.records[record.name] = record
        state = json.dumps(dataclasses.asdict(record), indent=1)
        write(self.folder / ".state" / f"{record.name}.json", state)
        write(self.folder / "feedback" / f"{record.name}.html", pages.feedback(record, self.facts))
        write(self.folder / "gradescope" / f"{record.name}.json", gradescope(record))
        if last:
            self.tables()

    def tables(self) -> None:
        """The two tables and the page for the class."""
        records = sorted(self.records.values(), key=lambda record: record.name)
        write(self.folder / "grades.csv", grades(records))
        write(self.folder / "details.csv", details(records))
        write(self.folder / "class.html", pages.class_page(records, self.facts))


def write(path: Path, text: str) -> None:
    """Write beside, then rename."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="")
    os.replace(partial, path)


def _table(rows) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [[_cell(value) for value in row] for row in rows]
    )
    return text.getvalue()


def _cell(value):
    """A cell that no spreadsheet takes for a formula."""
    value = f"{value:g}" if isinstance(value, float) else value
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def grades(records) -> str:
    """One row a submission, a column an exercise; empty where the exercise is of another lesson."""
    titles = sorted(
        {(r.number, r.exercise) for record in records for r in record.results}, key=place
    )
    head = ["student", "file", "status", *(f"{n} {name}" for n, name in titles), "total", "out of"]
    rows = [head]
    for record in records:
        points = {
            (r.number, r.exercise): "" if r.verdict == "ungraded" else r.points
            for r in record.results
        }
        marks = [points.get(title, "") for title in titles]
        rows.append([record.name, record.file, record.status, *marks, record.total, record.out_of])
    return _table(rows)


def details(records) -> str:
    """One row a submission and exercise."""
    rows = [DETAILS]
    for record in records:
        for r in record.results:
            points = "" if r.verdict == "ungraded" else r.points
            rows.append([record.name, r.lesson, r.number, r.exercise, r.verdict, points, r.out_of,
                         r.mistake, f"{r.seconds:.3f}"])
    return _table(rows)


def gradescope(record: Record, seconds: float | None = None) -> str:
    """The ``results.json`` that Gradescope reads; all of it is text, nothing is rendered.

    What is ungraded has no score, and then there is no total either.
    """
    tests = []
    for r in record.results:
        test = {
            "name": f"{r.number} {r.exercise}", "number": r.number, "score": r.points,
            "max_score": r.out_of, "output": "\n".join(as_lines(r)), "visibility": "visible",
        }
        if r.verdict == "ungraded":
            del test["score"], test["max_score"]
        tests.append(test | {"status": "passed" if r.right else "failed"})
    notes = [note for note in record.notes if note not in record.status]
    output = "\n".join([record.status, *notes, f"Seed of the cases: {record.seed}"])
    seconds = sum(r.seconds for r in record.results) if seconds is None else seconds
    data = {
        "score": record.total, "output": output, "output_format": "text",
        "test_output_format": "text", "test_name_format": "text", "visibility": "visible",
        "stdout_visibility": "hidden", "tests": tests,
        "execution_time": round(seconds),
    }
    if record.ungraded:
        del data["score"]
    return json.dumps(data, indent=1)
