"""Prints the table of hostile submissions: ``python tests/autograder/hostile_table.py``.

Every file of ``hostile/`` is judged here and now. A row shows what the hostile exercise (of 2
points) got, whether that is what it deserves, and what the innocent one beside it (of 1) got.
"""

import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE), str(HERE / "course")]

from test_hostile import ISOLATED, NOT_BOTH, TABLE, file_of, judged  # noqa: E402

from autograder.grading import course_runner  # noqa: E402
from autograder.judge import Judge  # noqa: E402
from autograder.lessons import load_course  # noqa: E402


def main() -> int:
    wrong = waited = 0
    with course_runner(HERE / "course") as runner:
        print(runner.description)
        judge = Judge(runner, load_course(HERE / "course"), seed=os.environ.get("SEED"))
        print(f"seed of the cases: {judge.seed}\n")
        print(f"{'submission':32s} {'verdict':14s} points  as deserved  beside it    seconds")
        for name, deserved in TABLE.items():
            if name in ISOLATED and runner.level < 2:
                print(f"{name:32s} not tried: needs isolation level 2")
                continue
            started = time.monotonic()
            hostile, innocent = judged(judge, file_of(name))
            waited = max(waited, time.monotonic() - started)
            kept = innocent.verdict == ("missing" if name in NOT_BOTH else "right")
            fair = (
                hostile.verdict in deserved
                and hostile.points == (2 if hostile.verdict == "right" else 0)
            )
            wrong += not (fair and kept)
            beside = f"{innocent.verdict} {innocent.points:g}"
            print(f"{name:32s} {hostile.verdict:14s} {hostile.points:4g}    "
                  f"{'yes' if fair else 'NO':11s}  {beside + ('' if kept else ' LOST'):11s}"
                  f" {time.monotonic() - started:7.1f}", flush=True)
    print(f"\n{len(TABLE)} submissions, {wrong} not as deserved; the longest took {waited:.1f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
