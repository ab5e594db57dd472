"""The demo's figures: reward against KL, and the pipeline's sample answers.

Draws ``demo_reward_against_kl.png`` and ``demo_answers.png`` from ``demo.json`` (seed 0, with the
tables of all seeds); ``--record`` runs the demo on every seed again.
"""

import argparse
import json
from pathlib import Path

from rlhf_minimal.demo import run_demo
from rlhf_minimal.demo_report import draw_answers, draw_frontier, table
from rlhf_minimal.history import write_json

NUMBERS = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)


def record() -> None:
    """Run the demo on every seed; the curves are kept for the first alone."""
    results = [run_demo(seed) for seed in SEEDS]
    for result in results[1:]:
        for row in result["rows"]:
            row.pop("curve", None)
    write_json(NUMBERS, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true", help="run the demo again, some minutes")
    if parser.parse_args().record:
        record()
    results = json.loads(NUMBERS.read_text(encoding="utf-8"))
    for result in results:
        print(f"seed {result['seed']}\n{table(result)}\n")
    draw_frontier(results[0], NUMBERS.with_name("demo_reward_against_kl.png"))
    draw_answers(results[0], NUMBERS.with_name("demo_answers.png"))


if __name__ == "__main__":
    main()
