"""What ``reinforce`` and ``ppo`` promise on the command line."""

import argparse

import pytest

from rlhf_minimal.control_cli import add_control_commands
from rlhf_minimal.history import History


def run(*arguments):
    """What ``python -m rlhf_minimal …`` does with these subcommands; returns the exit status."""
    parser = argparse.ArgumentParser(prog="rlhf_minimal")
    add_control_commands(parser.add_subparsers(required=True))
    args = parser.parse_args([str(argument) for argument in arguments])
    return args.run(args)


@pytest.mark.parametrize("command", ["reinforce", "ppo"])
def test_a_run_prints_a_row_and_leaves_history_and_curve(command, tmp_path, capsys):
    assert run(command, "--max-steps", 2500, "--seed", 3, "--out", tmp_path, "--quiet") == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # --quiet: no bar
    header, row, _ = printed.out.splitlines()
    assert header.split() == ["seed", "steps", "greedy", "return", "(20", "episodes)", "seconds"]
    history = History.load(tmp_path / "history.json")
    seed, steps, mean, _, error, seconds = row.split()
    assert seed == "3" and steps == f"{history['steps'][-1]:,}"
    assert 0 < float(mean) <= 500 and float(error) >= 0 and float(seconds) > 0
    assert history.facts["seed"] == 3 and history.facts["target_return"] == 475
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_several_seeds_have_a_row_and_a_history_each(tmp_path, capsys):
    options = ["--max-steps", 300, "--seeds", 2, "--num-envs", 2, "--gamma", 0.9, "--quiet"]
    assert run("reinforce", *options, "--out", tmp_path) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == ["0", "1"]
    for seed in (0, 1):
        facts = History.load(tmp_path / f"seed_{seed}" / "history.json").facts
        assert (facts["seed"], facts["num_envs"], facts["gamma"]) == (seed, 2, 0.9)


@pytest.mark.parametrize("env_id", ["NoSuchPole-v1", "Pendulum-v1"])
def test_an_environment_that_does_not_fit_is_one_line_and_status_2(env_id, tmp_path, capsys):
    assert run("ppo", "--env", env_id, "--out", tmp_path / "none", "--quiet") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and env_id in printed.err and printed.err.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--gamma", "1.5"),
        ("--max-steps", "0"),
        ("--seed", "-1"),
        ("--learning-rate", "0"),
        ("--epochs", "many"),
        ("--clip", "nan"),
    ],
)
def test_bad_values_are_refused_by_name(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("ppo", *options)
    assert stopped.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_a_run_too_short_to_evaluate_still_draws(tmp_path):
    assert run("ppo", "--max-steps", 1, "--out", tmp_path, "--quiet") == 0
    assert (tmp_path / "learning_curve.png").exists()
