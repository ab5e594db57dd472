"""How long a class takes to grade, how much memory that needs, and whether every mark is deserved.

    python benchmarks/grading.py                    # 200 notebooks of lesson 01
    python benchmarks/grading.py --size 30 --lesson 00

Makes a class (``made_class.py``), grades it with ``python -m autograder grade``, watches the whole
tree of processes meanwhile, compares every mark with what the notebook deserves, prints a table and
writes ``benchmarks/grading.json``.

Leaves out: systems without ``/proc``.
"""

import argparse
import collections
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from made_class import make_class  # noqa: E402

PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
EVERY_S = 0.25                  # how often memory is looked at


class Watch(threading.Thread):
    """The most memory that a process and everything below it have held at one moment.

    ``rss`` counts a page once for each process that has it, and forked processes share most of
    theirs; ``pss`` divides a shared page among its holders, which is what the machine really gives.
    """

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.rss, self.pss, self.processes = pid, 0.0, 0.0, 0
        self.done = threading.Event()

    def run(self):
        while not self.done.wait(EVERY_S):
            tree = below(self.pid)
            self.rss = max(self.rss, sum(map(_rss, tree)))
            self.pss = max(self.pss, sum(map(_pss, tree)))
            self.processes = max(self.processes, len(tree))


def below(pid: int) -> list[int]:
    """A process and all its descendants, those in other namespaces too."""
    found = [pid]
    for one in found:
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, path.read_text().split())
            except OSError:
                continue
    return found


def _rss(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_MB
    except (OSError, IndexError):
        return 0.0


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def grade(folder: Path, marks: Path, lesson: str, jobs: int, seed: str) -> dict:
    """Run the grader as an instructor would; what it cost."""
    command = [sys.executable, "-m", "autograder", "--root", str(ROOT), "grade", str(folder),
               "--out", str(marks), "--jobs", str(jobs), "--seed", seed]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    watch = Watch(process.pid)
    watch.start()
    said = process.communicate()[0]
    watch.done.set()
    watch.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall_seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "peak_rss_mb": round(watch.rss), "peak_pss_mb": round(watch.pss),
        "processes_at_once": watch.processes, "exit_code": process.returncode,
        "isolation": said.split("\n")[0],
    }


def compare(students, marks: Path, lesson: str) -> list[str]:
    """Every way in which the marks are not what the notebooks deserve."""
    details = collections.defaultdict(dict)
    for row in _rows(marks / "details.csv"):
        details[row["submission"]][row["exercise"]] = row
    grades = {row["student"]: row for row in _rows(marks / "grades.csv")}
    names = {student.name: student.name.replace("'", "_") for student in students}
    faults = [f"{name} is graded, and was never made" for name in grades.keys()
              - set(names.values())]
    for student in students:
        name = names[student.name]
        if name not in grades:
            faults.append(f"{name} ({student.kind}) has no row")
            continue
        total = sum(d.points for d in student.deserved.values())
        if float(grades[name]["total"]) != total:
            faults.append(f"{name} ({student.kind}): {grades[name]['total']} of {total:g} points")
        if not student.deserved and not grades[name]["status"].startswith("unreadable"):
            faults.append(f"{name} ({student.kind}): status {grades[name]['status']}")
        faults += [
            f"{name} ({student.kind}): {fault}"
            for exercise, deserved in student.deserved.items()
            for fault in _unlike(exercise, deserved, details[name].get(exercise))
        ]
    return faults


def _unlike(exercise: str, deserved, row):
    if row is None:
        yield f"{exercise} is not in details.csv"
        return
    if row["verdict"] not in deserved.verdicts or float(row["points"] or 0) != deserved.points:
        yield (f"{exercise} is {row['verdict']} with {row['points'] or 'no'} points, deserves "
               f"{' or '.join(sorted(deserved.verdicts))} with {deserved.points:g}")
    if deserved.mistake and row["mistake"] != deserved.mistake:
        yield f"{exercise} is taken for {row['mistake'] or 'nothing'}, it is {deserved.mistake}"


def _rows(path: Path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def machine() -> dict:
    """What the numbers were measured on."""
    import torch

    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text()
                  .splitlines() if line.startswith("model name")), platform.machine())
    return {
        "cpu": model, "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2), "python": platform.python_version(),
        "torch": torch.__version__, "system": f"{platform.system()} {platform.release()}",
    }


def table(result: dict) -> str:
    """The result as an instructor reads it."""
    cost, n = result["cost"], result["size"]
    lines = [
        f"lesson {result['lesson']}, {n} notebooks, {cost['isolation']}",
        f"  wall clock       {cost['wall_seconds']:8.1f} s   {cost['wall_seconds'] / n:.2f} s each",
        f"  processor        {cost['cpu_seconds']:8.1f} s   {cost['cpu_seconds'] / n:.2f} s each",
        f"  memory, shared pages once          {cost['peak_pss_mb']:6d} MB",
        f"  memory, summed over processes      {cost['peak_rss_mb']:6d} MB",
        f"  not as deserved  {len(result['faults']):6d} of {result['results']} results",
        "",
        "  what the class is made of",
    ]
    return "\n".join([*lines, *(f"  {count:6d}  {kind}" for kind, count in result["made"].items())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=200, help="how many notebooks (default: 200)")
    parser.add_argument("--lesson", default="01", help="two digits (default: 01)")
    parser.add_argument("--jobs", type=int, default=2, help="submissions at once (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the class and of the cases")
    parser.add_argument("--keep", metavar="DIR", help="keep the class and its marks in DIR")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "grading.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="class-") as scratch:
        folder = Path(options.keep or scratch)
        students = make_class(ROOT, folder / "submissions", options.lesson, options.size,
                              options.seed)
        before = machine()
        cost = grade(folder / "submissions", folder / "marks", options.lesson, options.jobs,
                     str(options.seed))
        faults = compare(students, folder / "marks", options.lesson)
    made = collections.Counter(student.kind for student in students)
    result = {
        "lesson": options.lesson, "size": options.size, "jobs": options.jobs, "seed": options.seed,
        "results": sum(len(student.deserved) for student in students), "cost": cost,
        "faults": faults, "made": dict(made.most_common()), "machine": before,
    }
    Path(options.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(table(result))
    for fault in faults:
        print(f"  NOT AS DESERVED {fault}")
    return 1 if faults or cost["exit_code"] else 0


if __name__ == "__main__":
    sys.exit(main())
