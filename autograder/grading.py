"""``python -m autograder grade PATH… --out DIR``: judges a folder of submissions.

Each worker is a thread with a zygote of its own; the judging itself is light. Whatever happens to
one submission, the others are graded, and what is graded is on disk.

Leaves out: the form of the reports (``reports.py``).
"""

import os
import queue
import sys
import threading
from pathlib import Path

from autograder.judge import Judge, fresh_seed
from autograder.lessons import Lesson, add_to_path, hidden_paths, load_course
from autograder.reports import Record, Reports
from autograder.runner import start
from autograder.submissions import Entry, collect_entries, read_entry

__all__ = ["course_runner", "grade", "grade_entry"]


def course_runner(root: Path, plan: str = "auto", extra_hidden=()):
    """A runner for the course at ``root``: its package importable, its answers and tests hidden."""
    add_to_path(root)
    hide = [*hidden_paths(root), *(Path(path).resolve() for path in extra_hidden)]
    return start(plan, hide=hide)


def grade_entry(judge: Judge, entry: Entry, lesson: str | None = None) -> Record:
    """Read one submission and judge every exercise of its lessons."""
    record = Record(entry.name, str(entry.path), entry.digest(), judge.seed, "graded")
    if not entry.files:
        record.notes.append("there is no .ipynb or .py file in it (links are not followed)")
    for found, submission in read_entry(judge, entry, lesson):
        record.notes += submission.notes
        if found is not None:
            record.results += [judge.judge(submission, exercise) for exercise in found.exercises]
    if not record.results:
        record.status = f"unreadable: {record.notes[0]}" if record.notes else "no exercise found"
    elif record.ungraded:
        record.status = f"{len(record.ungraded)} ungraded"
    return record


def failed_record(entry: Entry, seed: str, error: Exception) -> Record:
    """A submission that could not be graded through our own fault."""
    why = f"{type(error).__name__}: {error}"[:300]
    return Record(entry.name, str(entry.path), "", seed, f"ungraded: {why}", [why])


class Work:
    """The queue that the workers share, and the lock around the reports."""

    def __init__(self, entries, reports: Reports, lessons: list[Lesson], seed: str, bar, lesson):
        self.todo: queue.SimpleQueue = queue.SimpleQueue()
        for entry in entries:
            self.todo.put(entry)
        self.reports, self.lessons, self.seed, self.bar, self.lesson = (
            reports,
            lessons,
            seed,
            bar,
            lesson,
        )
        self.expectations: dict = {}
        self.lock = threading.Lock()
        self.stopped = False

    def run(self, runner) -> None:
        """What one worker does until nothing is left."""
        with runner:
            judge = Judge(runner, self.lessons, self.seed, self.expectations)
            while not self.stopped:
                try:
                    entry = self.todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    record = grade_entry(judge, entry, self.lesson)
                except Exception as error:
                    record = failed_record(entry, self.seed, error)
                with self.lock:
                    self.reports.add(record)
                    self.bar.update()


def grade(
    paths,
    out,
    *,
    root: Path,
    resume=False,
    official=False,
    seed=None,
    jobs=2,
    lesson=None,
    plan="auto",
    say=print,
) -> int:
    """Grade everything under ``paths`` into the folder ``out``; returns the exit code.

    0: all graded. 1: something is ungraded, and said so. 2: it was not begun.
    """
    import torch
    from tqdm import tqdm

    torch.set_num_threads(1)
    entries = collect_entries(paths)
    if not entries:
        say(f"no .ipynb or .py file in {', '.join(map(str, paths))}")
        return 2
    add_to_path(root)
    lessons = load_course(root)
    hidden = [out, *(Path(path) if Path(path).is_dir() else Path(path).parent for path in paths)]
    hidden = [
        path for path in hidden if not Path(__file__).resolve().is_relative_to(Path(path).resolve())
    ]
    runners = [course_runner(root, plan, hidden)]
    say(runners[0].description)
    if official and runners[0].level == 0:
        say("--official needs isolation level 1 or more: run as root on Linux, or in a container")
        runners[0].close()
        return 2
    reports = Reports(out)
    seed, waiting = _begin(reports, entries, resume, seed)
    reports.facts = {"seed of the cases": seed, "isolation": f"level {runners[0].level}"}
    say(f"seed of the cases: {seed} (grade again with --seed {seed} for the same cases)")
    jobs = max(1, min(jobs, len(waiting), 2 * (os.cpu_count() or 1)))
    runners += [course_runner(root, plan, hidden) for _ in range(jobs - 1)]
    with tqdm(total=len(entries), initial=len(entries) - len(waiting), unit="submission",
              dynamic_ncols=True, file=sys.stderr) as bar:
        _run_all(Work(waiting, reports, lessons, seed, bar, lesson), runners)
    reports.tables()
    return _close(reports, out, say)


def _begin(reports: Reports, entries, resume: bool, seed):
    """The seed of this run, and what is still to be done."""
    known = reports.resume() if resume else {}
    seed = (
        str(seed)
        if seed is not None
        else next((r.seed for r in known.values()), None) or fresh_seed()
    )
    reports.forget({entry.name for entry in entries})
    waiting = [
        entry for entry in entries if not _done(reports.records.get(entry.name), entry, seed)
    ]
    return seed, waiting


def _done(record, entry, seed) -> bool:
    if record is None or record.ungraded or record.status.startswith("ungraded"):
        return False
    return record.seed == seed and record.digest == entry.digest()


def _run_all(work: Work, runners) -> None:
    """Run the workers; Ctrl-C stops after the submission in hand."""
    threads = [threading.Thread(target=work.run, args=(runner,), daemon=True) for runner in runners]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(0.2)
    except KeyboardInterrupt:
        work.stopped = True
        raise


def _close(reports: Reports, out, say) -> int:
    ungraded = [
        record.name for record in reports.records.values()
        if record.ungraded or record.status.startswith("ungraded")
    ]
    files = "grades.csv, details.csv, class.html, feedback/, gradescope/"
    say(f"{len(reports.records)} submissions in {out}: {files}")
    if ungraded:
        names = ", ".join(ungraded)
        say(f"UNGRADED, through a fault of the grader: {names}. Run again with --resume.")
    return 1 if ungraded else 0
