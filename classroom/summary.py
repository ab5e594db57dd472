"""Prints the marks in a folder as a table in Markdown: ``python classroom/summary.py MARKS``.

With ``--at-least POINTS`` the exit code is 1 where a submission has fewer. Everything shown is the
grader's own word; nothing that a student has written is among it.

Leaves out: the feedback itself (``MARKS/feedback``).
"""

import argparse
import csv
import sys
from pathlib import Path

SIGNS = {"right": "✓", "not attempted": "·", "missing": "–", "ungraded": "?"}


def table(rows) -> str:
    """One line an exercise."""
    lines = ["| | exercise | verdict | points |", "| --- | --- | --- | ---: |"]
    for row in rows:
        sign, points = SIGNS.get(row["verdict"], "✗"), row["points"] or "none yet"
        lines.append(f"| {sign} | {row['number']} `{row['exercise']}` | {row['verdict']} "
                     f"| {points} of {row['out_of']} |")
    return "\n".join(lines)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("marks", type=Path)
    parser.add_argument("--at-least", type=float, metavar="POINTS")
    options = parser.parse_args(arguments)
    details = options.marks / "details.csv"
    if not details.exists():
        print("Nothing was graded: the log of the step before says why.")
        return 0 if options.at_least is None else 1
    with open(details, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    total = sum(float(row["points"] or 0) for row in rows)
    out_of = sum(float(row["out_of"]) for row in rows)
    print(f"## {total:g} of {out_of:g} points\n")
    print(table(rows) if rows else "No exercise of the course was found.")
    print("\nWhat is wrong, and the smallest case that fails: the artefact `feedback` of this run.")
    return 1 if options.at_least is not None and total < options.at_least else 0


if __name__ == "__main__":
    sys.exit(main())
