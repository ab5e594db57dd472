"""``python -m autograder grade | prove | build | release | gradescope``.

``--help`` after each says what it takes.
"""

import argparse
import os
import sys
from pathlib import Path

from autograder.isolation import PLANS


def main(arguments=None) -> int:
    options = parser().parse_args(arguments)
    from autograder.lessons import find_root

    try:
        root = Path(options.root).resolve() if options.root else find_root()
        return options.run(options, root)
    except (FileNotFoundError, ValueError) as error:
        print(f"autograder: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("autograder: stopped; what was graded is kept (go on with --resume)", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m autograder", description=__doc__)
    top.add_argument(
        "--root", help="the course's folder (default: the nearest with tests/exercises)"
    )
    names = "grade | prove | build | release | gradescope"
    commands = top.add_subparsers(required=True, metavar=names)
    _grade(commands.add_parser("grade", help="judge submissions, write marks and feedback"))
    prove = commands.add_parser("prove", help="prove the exercises' tests; print what kills what")
    prove.add_argument("lesson", nargs="?", help="two digits; all lessons without it")
    prove.add_argument("--seeds", type=int, default=200, help="how many seeds (default: 200)")
    prove.add_argument("--no-mutants", action="store_true", help="leave out automatic mutants")
    prove.set_defaults(run=_run_prove)
    build = commands.add_parser("build", help="make the notebooks from solutions/NN_topic.py")
    build.add_argument("lesson", nargs="*", help="two digits each; all lessons without any")
    build.add_argument("--check", action="store_true", help="write nothing; fail where they differ")
    build.add_argument("--no-run", action="store_true", help="keep the outputs that are there")
    build.set_defaults(run=_run_build)
    release = commands.add_parser("release", help="copy the course for students, no solutions")
    release.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    release.add_argument(
        "--no-answers", action="store_true", help="without the worked answers in the lessons too"
    )
    release.set_defaults(run=_run_release)
    _gradescope(commands.add_parser("gradescope", help="pack the zip that Gradescope takes"))
    return top


def _grade(grade) -> None:
    grade.add_argument("paths", nargs="+", metavar="PATH", help="notebooks, or folders of them")
    grade.add_argument("--out", required=True, metavar="DIR", help="where marks and feedback go")
    grade.add_argument("--resume", action="store_true", help="keep what DIR has, grade the rest")
    grade.add_argument("--official", action="store_true", help="refuse isolation level 0")
    grade.add_argument("--seed", help="repeat the cases of an earlier run")
    grade.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="submissions at once"
    )
    grade.add_argument("--lesson", help="take every submission for this lesson")
    grade.add_argument(
        "--plan", default="auto", choices=["auto", "spawn", *PLANS], help=argparse.SUPPRESS
    )
    grade.set_defaults(run=_run_grade)


def _gradescope(part) -> None:
    part.add_argument("--lesson", required=True, help="two digits")
    what = part.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", metavar="ZIP", help="pack the zip to upload")
    what.add_argument("--mark", metavar="DIR", help="mark what lies there (in the container)")
    part.add_argument("--plan", default="auto", choices=["auto", *PLANS], help=argparse.SUPPRESS)
    part.set_defaults(run=_run_gradescope)


def _run_grade(options, root) -> int:
    from autograder.grading import grade

    return grade(
        options.paths, options.out, root=root, resume=options.resume, official=options.official,
        seed=options.seed, jobs=options.jobs, lesson=options.lesson, plan=options.plan,
    )


def _run_prove(options, root) -> int:
    from autograder.proof import prove

    return prove(root, options.lesson, seeds=options.seeds, mutants=not options.no_mutants)


def _run_build(options, root) -> int:
    from autograder.build import build

    return build(root, options.lesson, check=options.check, run=not options.no_run)


def _run_release(options, root) -> int:
    from autograder.releasing import release

    return release(root, options.out, answers=not options.no_answers)


def _run_gradescope(options, root) -> int:
    from autograder.gradescope import mark, pack

    if options.out:
        return pack(root, options.lesson, options.out)
    return mark(root, options.lesson, options.mark, plan=options.plan)


if __name__ == "__main__":
    sys.exit(main())
