"""``python -m rlhf_minimal reinforce`` and ``… ppo``: train on a Gymnasium environment.

Leaves out: a switch for every argument of the training loops; call those from Python.
"""

import argparse
import sys
import time
from pathlib import Path

from rlhf_minimal.environments import evaluate_policy, make_environments
from rlhf_minimal.history import History
from rlhf_minimal.plots import learning_curve, points
from rlhf_minimal.policy_gradient import train_reinforce
from rlhf_minimal.ppo import train_ppo

__all__ = ["add_control_commands"]


def _number(kind, low, high=float("inf"), low_is_allowed=True):
    """An argparse type: a ``kind`` between ``low`` and ``high``."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high or (value == low and not low_is_allowed):
            bound = f"{'at least' if low_is_allowed else 'above'} {low}"
            limit = f" and at most {high}" if high < float("inf") else ""
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {name} {bound}{limit}")
        return value

    return parse


def _common_options(parser, method: str, max_steps: int) -> None:
    add = parser.add_argument
    add("--env", default="CartPole-v1", help="Gymnasium environment id (default: %(default)s)")
    add("--seed", type=_number(int, 0), default=0, help="the first seed (default: 0)")
    add("--seeds", type=_number(int, 1), default=1, metavar="N", help="train N seeds in turn")
    add(
        "--max-steps",
        type=_number(int, 1),
        default=max_steps,
        help="environment steps to train for at most (default: %(default)s)",
    )
    add(
        "--target-return",
        type=float,
        help="stop when three greedy evaluations in a row reach this "
        "(default: the environment's own threshold, 475 for CartPole-v1)",
    )
    add("--out", type=Path, default=Path("out") / method, help="folder (default: %(default)s)")
    add("--quiet", action="store_true", help="no progress bar")
    add("--num-envs", type=_number(int, 1), help="environments stepped together")
    add("--gamma", type=_number(float, 0, 1), help="discount factor")
    add("--learning-rate", type=_number(float, 0, low_is_allowed=False), help="Adam's")


def add_control_commands(subparsers) -> None:
    """Register ``reinforce`` and ``ppo``; each sets ``run``, which returns an exit status.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers()`` returned.
    """
    text = "REINFORCE on a Gymnasium environment"
    reinforce = subparsers.add_parser("reinforce", help=text, description=text)
    _common_options(reinforce, "reinforce", 300_000)
    reinforce.set_defaults(run=_run, method="REINFORCE", train=train_reinforce, extra=[])

    text = "PPO on a Gymnasium environment"
    ppo = subparsers.add_parser("ppo", help=text, description=text)
    _common_options(ppo, "ppo", 100_000)
    ppo.add_argument("--lam", type=_number(float, 0, 1), help="GAE's trace decay")
    ppo.add_argument("--clip", type=_number(float, 0, low_is_allowed=False), help="clip range")
    ppo.add_argument("--epochs", type=_number(int, 1), help="passes over each rollout")
    ppo.set_defaults(run=_run, method="PPO", train=train_ppo, extra=["lam", "clip", "epochs"])


def _run(args) -> int:
    """Train every seed, print a table, save histories and the learning curve."""
    try:
        histories, returns = _train_seeds(args)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; what was recorded is in {args.out}", file=sys.stderr)
        return 130
    print(f"saved histories and {_save_curve(args, histories, returns)}")
    return 0


def _train_seeds(args):
    """Histories and mean greedy returns, one a seed; a row of the table is printed as each ends."""
    envs = make_environments(args.env, 1)
    threshold, _ = envs.spec.reward_threshold, envs.close()
    target = threshold if args.target_return is None else args.target_return
    names = ["num_envs", "gamma", "learning_rate", *args.extra]
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    histories, returns = [], []
    for seed in range(args.seed, args.seed + args.seeds):
        folder = args.out / f"seed_{seed}" if args.seeds > 1 else args.out
        facts = {"method": args.method, "env": args.env, "seed": seed, "max_steps": args.max_steps}
        history = History(folder / "history.json", **facts, **options, target_return=target)
        started = time.perf_counter()
        policy, history = args.train(
            args.env,
            seed=seed,
            max_steps=args.max_steps,
            target_return=target,
            history=history,
            show_progress=not args.quiet,
            **options,
        )
        seconds = time.perf_counter() - started
        # Seeds the training never saw: its own checks started from seed + steps.
        greedy = evaluate_policy(policy, args.env, episodes=20, seed=seed + 10**9)
        if not histories:
            print(f"{'seed':>4}  {'steps':>9}  {'greedy return (20 episodes)':>27}  {'seconds':>7}")
        mean, error = greedy.mean().item(), greedy.std().item() / len(greedy) ** 0.5
        steps = history["steps"][-1]
        print(f"{seed:>4}  {steps:>9,}  {f'{mean:.1f} ± {error:.1f}':>27}  {seconds:>7.1f}")
        histories.append(history)
        returns.append(mean)
    return histories, returns


def _save_curve(args, histories, returns) -> Path:
    """The PNG beside the histories; without a greedy evaluation, the sampled episodes' returns."""
    from matplotlib.figure import Figure

    evaluated = all(points(history, "steps", "greedy_return")[0] for history in histories)
    column = "greedy_return" if evaluated else "mean_return"
    runs = [points(history, "steps", column) for history in histories]
    steps = sorted(history["steps"][-1] for history in histories)[len(histories) // 2]
    mean = sum(returns) / len(returns)
    figure = Figure(figsize=(7, 4), layout="constrained")
    learning_curve(
        {args.method: runs},
        title=f"{args.method} on {args.env}: {mean:.0f} a greedy episode after {steps:,} steps",
        y_label=f"{column.split('_')[0]} return (reward per episode)",
        axes=figure.subplots(),
    )
    path = args.out / "learning_curve.png"
    figure.savefig(path, dpi=150)
    return path
