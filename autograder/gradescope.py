"""Gradescope: packs the zip that an instructor uploads, and marks the one submission that lies
there.

In Gradescope's container everything lies under ``/autograder``: our zip in ``source/``, the
student's files in ``submission/``, and ``results/results.json`` is what it reads afterwards. Where
the fault is ours no results are written: Gradescope then says that the autograder failed, where
marks written down would be zeros.

Leaves out: students' names (Gradescope knows them); late days; leaderboards.
"""

import contextlib
import dataclasses
import os
import time
import zipfile
from pathlib import Path

from autograder.grading import course_runner, failed_record, grade_entry
from autograder.judge import Judge, fresh_seed
from autograder.lessons import load_course
from autograder.reading import Reading
from autograder.releasing import course_files
from autograder.reports import gradescope, write
from autograder.results import Submission
from autograder.submissions import Entry, files_in

__all__ = ["mark", "pack"]

SCRIPTS = ("setup.sh", "run_autograder")


def pack(root: Path, lesson: str, out: Path, say=print) -> int:
    """Write the zip for one lesson: the scripts at its root, the course beside them."""
    found = load_course(root, lesson)[0]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in SCRIPTS:
            _store(archive, name, (Path(root) / "gradescope" / name).read_bytes(), 0o755)
        _store(archive, "lesson", f"{found.number}\n".encode())
        for path in course_files(root, without=("lessons", "figures", "gradescope")):
            _store(archive, f"course/{path}", (Path(root) / path).read_bytes())
    os.replace(partial, out)
    points = sum(ex.points for ex in found.exercises)
    say(f"{out}: lesson {found.number} {found.topic}, {out.stat().st_size / 1e6:.1f} MB; "
        f"give the assignment {points:g} points in Gradescope")
    return 0


def _store(archive, name: str, data: bytes, mode=0o644) -> None:
    """One file with fixed time and mode: the same course gives the same bytes."""
    info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
    info.external_attr = (0o100000 | mode) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, data)


def mark(root: Path, lesson: str, base: Path, *, plan="auto", seed=None, say=print) -> int:
    """Judge what lies in ``base/submission`` and write ``base/results/results.json``.

    Returns:
        0 where results were written; 1 where they were not, since the fault is ours.
    """
    started, base = time.monotonic(), Path(base)
    results = base / "results"
    results.mkdir(exist_ok=True)
    (results / "results.json").unlink(missing_ok=True)
    closed = [base / "submission", results]
    for path in closed:
        with contextlib.suppress(OSError):
            path.chmod(0o700)                   # all that level 1 has where there is no Landlock
    with course_runner(root, plan, closed) as runner:
        say(runner.description)
        if runner.level == 0:
            say("not graded: marks need isolation level 1 or more, and this container gives 0")
            return 1
        judge = Judge(runner, load_course(root), seed if seed is not None else fresh_seed())
        record = _judged(judge, base / "submission", lesson)
    say(f"{record.status}: {record.total:g} of {record.out_of:g} points; seed {judge.seed}")
    if record.ungraded or record.status.startswith("ungraded"):
        for result in record.ungraded:
            say(f"UNGRADED {result.number} {result.exercise}: {result.headline}")
        say("No results are written: a fault of the grader, to be run again.")
        return 1
    write(results / "results.json", gradescope(record, time.monotonic() - started))
    return 0


def _judged(judge: Judge, folder: Path, lesson: str):
    entry = Entry("submission", folder, files_in(folder))
    try:
        record = grade_entry(judge, entry, lesson)
        if not record.results:                  # no file at all: every exercise is missing
            found = next(part for part in judge.lessons if part.number == str(lesson).zfill(2))
            empty = Submission("submission", Reading(), list(record.notes))
            record.results = [judge.judge(empty, exercise) for exercise in found.exercises]
    except Exception as error:
        return failed_record(entry, judge.seed, error)
    read = [f"Read: {', '.join(file.name for file in entry.files)}"] if entry.files else []
    return dataclasses.replace(record, notes=[*record.notes, *read])
