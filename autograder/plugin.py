"""The pytest door: ``pytest tests/exercises`` for one's own lessons, ``--submissions PATH…`` for a
class.

Every exercise declared in a test file becomes one test for each submission. Right passes, not
attempted is skipped, everything else fails with the feedback as its text. Without ``--submissions``
the submission is the lesson itself, ``lessons/NN_topic.ipynb``: a fresh clone is green, and a
student watches skips turn into passes.

Leaves out: importing torch before a test needs it.
"""

import dataclasses
import json
import time
from pathlib import Path

import pytest

SEED = "autograder_seed"
PROPERTY = "autograder"
TABLES_EVERY_S = 2.0
COURSE = pytest.StashKey["Course"]()
MARKS = pytest.StashKey["Marks"]()


def pytest_addoption(parser):
    group = parser.getgroup("autograder", "exercises and submissions")
    group.addoption("--submissions", nargs="+", action="extend", metavar="PATH",
                    help="judge these notebooks, or folders of them, instead of lessons/")
    group.addoption("--marks", default="marks", metavar="DIR",
                    help="with --submissions: where marks and feedback go (default: marks)")
    group.addoption("--lesson", metavar="NN", help="take every submission for this lesson")
    group.addoption("--seed", help="repeat the cases of an earlier run")


def pytest_configure(config):
    inherited = getattr(config, "workerinput", {}).get(SEED)
    config.stash[COURSE] = Course(config, inherited or config.getoption("--seed"))
    if config.getoption("--submissions") and not hasattr(config, "workerinput"):
        config.stash[MARKS] = Marks(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """pytest-xdist: every worker draws the same cases."""
    node.workerinput[SEED] = node.config.stash[COURSE].seed


def pytest_unconfigure(config):
    if COURSE in config.stash:
        config.stash[COURSE].close()


def pytest_pycollect_makeitem(collector, name, obj):
    """Exercises are tests; their name in the module does not matter."""
    if type(obj).__name__ != "Exercise" or type(obj).__module__ != "autograder.exercises":
        return None
    course = collector.config.stash[COURSE]
    return [
        ExerciseItem.from_parent(
            collector, name=f"{obj.number} {obj.name}[{entry.name}]", exercise=obj, entry=entry
        )
        for entry in course.entries_for(obj, collector.path)
    ]


class Course:
    """What one pytest process needs to judge: a runner, the lessons, what was read of each
    submission.
    """

    def __init__(self, config, seed):
        from secrets import token_hex

        self.config, self.seed = config, str(seed or token_hex(8))
        self.judge, self.entries, self.read = None, None, {}

    def start(self, root: Path):
        """The judge, made when the first exercise is met."""
        if self.judge is None:
            from autograder.grading import course_runner
            from autograder.judge import Judge
            from autograder.lessons import add_to_path, load_course

            add_to_path(root)
            paths = self.config.getoption("--submissions") or []
            hidden = [p if p.is_dir() else p.parent for p in map(Path, paths)]
            self.runner = course_runner(root, extra_hidden=hidden)
            self.judge = Judge(self.runner, load_course(root), self.seed)
        return self.judge

    def entries_for(self, exercise, path: Path) -> list:
        """The submissions that this exercise is to be judged in."""
        from autograder.submissions import Entry, collect_entries

        root = path.resolve().parent.parent.parent
        paths = self.config.getoption("--submissions")
        if not paths:
            own = sorted((root / "lessons").glob(f"{exercise.lesson}_*.ipynb"))
            return [Entry("lessons", file, [file]) for file in own]
        if self.entries is None:
            self.entries = collect_entries(paths)
        return [entry for entry in self.entries if exercise.lesson in self.parts(root, entry)]

    def parts(self, root: Path, entry) -> dict:
        """Lesson number to what counts of the submission in it."""
        from autograder.submissions import read_entry

        key = str(entry.path)
        if key not in self.read:
            lesson = self.config.getoption("--lesson")
            found = read_entry(self.start(root), entry, lesson)
            self.read[key] = {part.number if part else "": reading for part, reading in found}
        return self.read[key]

    def result(self, exercise, entry, path: Path):
        root = path.resolve().parent.parent.parent
        judge = self.start(root)
        submission = self.parts(root, entry).get(exercise.lesson)
        if submission is None:                               # a lesson without any function yet
            submission = next(iter(self.parts(root, entry).values()))
        own = judge.exercise_named(exercise.name, exercise.lesson)
        return judge.judge(submission, own)

    def close(self):
        if self.judge is not None:
            self.judge.runner.close()


class Fails(Exception):
    """An exercise that is not right; its text is the feedback."""


class ExerciseItem(pytest.Item):
    """One exercise in one submission."""

    def __init__(self, *, exercise, entry, **more):
        super().__init__(**more)
        self.exercise, self.entry = exercise, entry

    def runtest(self):
        course = self.config.stash[COURSE]
        result = course.result(self.exercise, self.entry, self.path)
        isolation = course.judge.runner.level
        sent = [self.entry.name, dataclasses.asdict(result), isolation]
        self.user_properties.append((PROPERTY, json.dumps(sent)))
        if result.verdict == "not attempted":
            pytest.skip("not attempted")
        if not result.right:
            from autograder.cards import as_lines

            raise Fails("\n".join(as_lines(result)))

    def repr_failure(self, excinfo, style=None):
        if isinstance(excinfo.value, Fails):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, None, f"{self.exercise.title} in {self.entry.name}"


class Marks:
    """Gathers results where the tests are started, and writes the same files as ``grade``."""

    def __init__(self, config):
        self.config, self.reports, self.written_at = config, None, 0.0

    def start(self):
        from autograder.reports import Record, Reports
        from autograder.submissions import collect_entries

        if self.reports is None:
            seed = self.config.stash[COURSE].seed
            self.reports = Reports(self.config.getoption("--marks"), **{"seed of the cases": seed})
            self.waiting = {
                entry.name: Record(
                    entry.name, str(entry.path), entry.digest(), seed, "no exercise found"
                )
                for entry in collect_entries(self.config.getoption("--submissions"))
            }

    def take(self, text: str) -> None:
        """One result, as a worker sent it."""
        from autograder.results import Result

        self.start()
        name, fields, level = json.loads(text)
        record = self.waiting[name]
        record.results.append(Result(**fields))
        record.results.sort(key=lambda r: [int(part) for part in r.number.split(".")])
        record.status = f"{len(record.ungraded)} ungraded" if record.ungraded else "graded"
        self.reports.facts["isolation"] = f"level {level}"
        late = time.monotonic() - self.written_at > TABLES_EVERY_S
        self.reports.add(record, last=late)
        if late:
            self.written_at = time.monotonic()

    def finish(self) -> list[str]:
        """Write what is left; returns the lines of the summary."""
        self.start()
        for record in self.waiting.values():
            if not record.results:
                self.reports.add(record, last=False)
        self.reports.tables()
        facts = "; ".join(f"{name}: {value}" for name, value in self.reports.facts.items())
        lines = [f"{len(self.waiting)} submissions in {self.reports.folder}; {facts}"]
        for record in self.waiting.values():
            if record.status != "graded":
                lines.append(f"{record.name}: {record.status}")
        return lines


def pytest_runtest_logreport(report):
    """With xdist this runs where the tests are started, once a test."""
    marks = CURRENT.get("marks")
    if marks is not None and report.when == "call":
        for key, text in report.user_properties:
            if key == PROPERTY:
                marks.take(text)


CURRENT: dict = {}


def pytest_sessionstart(session):
    CURRENT["marks"] = session.config.stash.get(MARKS, None)


def pytest_terminal_summary(terminalreporter, config):
    marks = config.stash.get(MARKS, None)
    if marks is not None:
        terminalreporter.section("marks")
        for line in marks.finish():
            terminalreporter.write_line(line)
