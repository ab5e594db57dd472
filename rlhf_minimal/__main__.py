"""``python -m rlhf_minimal COMMAND``: what can be run without opening a lesson.

Leaves out: the algorithms; each command's work stands in a file of its own.
"""

import argparse
import os
import sys
from pathlib import Path

from rlhf_minimal.control_cli import add_control_commands
from rlhf_minimal.demo import run_demo
from rlhf_minimal.demo_report import draw_answers, draw_frontier, samples_text, table
from rlhf_minimal.dpo_cli import add_dpo_command
from rlhf_minimal.exact_table import exact_table, markdown
from rlhf_minimal.history import write_json


def add_demo_command(subparsers) -> None:
    """Register ``demo``."""
    text = "RLHF end to end on a toy language model, in about two minutes"
    demo = subparsers.add_parser("demo", help=text, description=text)
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR")
    demo.add_argument("--fast", action="store_true", help="a tenth of the work: does it run?")
    demo.set_defaults(run=_run_demo)


def _run_demo(args) -> int:
    """Run the demo, print its table and answers, write its JSON and figures."""
    args.out.mkdir(parents=True, exist_ok=True)
    result = run_demo(args.seed, args.fast)
    print(f"\n{table(result)}\n{samples_text(result)}\n")
    write_json(args.out / "demo.json", result)
    draw_frontier(result, args.out / "reward_against_kl.png")
    draw_answers(result, args.out / "answers.png")
    print(f"{result['seconds']:.0f} s in all; demo.json and two figures are in {args.out}")
    return 0


def add_exact_command(subparsers) -> None:
    """Register ``exact``."""
    text = "every method in a world small enough to enumerate, against the closed-form optimum"
    exact = subparsers.add_parser("exact", help=text, description=text)
    exact.add_argument("--seeds", type=int, default=2, metavar="N")
    exact.add_argument("--quick", action="store_true", help="fewer steps and methods")
    exact.set_defaults(run=_run_exact)


def _run_exact(args) -> int:
    """Print the table of distances from the optimum."""
    seeds, processes = range(args.seeds), os.cpu_count() or 1
    print(markdown(exact_table(seeds, args.quick, show_progress=True, processes=processes)))
    return 0


def main(arguments=None) -> int:
    """Parse the command line and run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_minimal")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_demo_command, add_control_commands, add_exact_command, add_dpo_command):
        add(subparsers)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
