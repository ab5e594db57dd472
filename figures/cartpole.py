"""Learning curves of REINFORCE and PPO on CartPole-v1, five seeds each.

Draws ``cartpole.png`` from ``cartpole.json``; ``--record`` trains again and rewrites the numbers
(about a minute and a half on one core).
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from rlhf_minimal.history import write_json
from rlhf_minimal.plots import learning_curve, points
from rlhf_minimal.policy_gradient import train_reinforce
from rlhf_minimal.ppo import train_ppo

NUMBERS = Path(__file__).with_suffix(".json")
SEEDS = [0, 1, 2, 3, 4]
MAX_STEPS = 80_000
SOLVED = 475  # CartPole-v1's reward threshold


def record() -> None:
    """Train every method on every seed, without stopping early, and keep the greedy returns."""
    runs = {}
    for method, train in (("REINFORCE", train_reinforce), ("PPO", train_ppo)):
        runs[method] = []
        for seed in SEEDS:
            _, history = train(seed=seed, max_steps=MAX_STEPS, evaluate_every=2_000)
            steps, returns = points(history, "steps", "greedy_return")
            runs[method].append({"seed": seed, "steps": steps, "greedy_return": returns})
    facts = {"env": "CartPole-v1", "seeds": SEEDS, "max_steps": MAX_STEPS, "episodes": 20}
    write_json(NUMBERS, {"facts": facts, "runs": runs})


def steps_until_solved(run) -> float:
    """Steps at the first of three evaluations in a row that reach the threshold."""
    good = [value >= SOLVED for value in run["greedy_return"]]
    for i in range(len(good) - 2):
        if all(good[i : i + 3]):
            return run["steps"][i]
    return float("inf")


def draw() -> Path:
    """Both methods in one picture; the title is worked out from the numbers."""
    runs = json.loads(NUMBERS.read_text(encoding="utf-8"))["runs"]
    middle = {
        method: sorted(steps_until_solved(run) for run in seeds)[len(seeds) // 2]
        for method, seeds in runs.items()
    }
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    learning_curve(
        {
            method: [(run["steps"], run["greedy_return"]) for run in seeds]
            for method, seeds in runs.items()
        },
        title=f"PPO solves CartPole in {middle['PPO'] / 1000:.0f},000 steps, "
        f"REINFORCE in {middle['REINFORCE'] / 1000:.0f},000 (medians)",
        target=SOLVED,
        axes=figure.subplots(),
    )
    path = NUMBERS.with_suffix(".png")
    figure.savefig(path, dpi=160)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="train again first")
    if parser.parse_args().record:
        record()
    print(draw())
