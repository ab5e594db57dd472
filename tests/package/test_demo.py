"""What ``python -m rlhf_minimal`` promises of its demo: every stage, its table, its files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_minimal.__main__ import main
from rlhf_minimal.demo import SWEEP, jobs
from rlhf_minimal.demo_report import samples_text, table

STAGES = ["base", "SFT", *jobs(fast=True)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The fast demo, run as a user runs it: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "rlhf_minimal", "demo", "--fast", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def result(demo):
    return json.loads((demo[0] / "demo.json").read_text(encoding="utf-8"))


def test_every_stage_has_its_row_in_order(result):
    assert [row["stage"] for row in result["rows"]] == STAGES


def test_every_row_is_measured(result):
    for row in result["rows"]:
        assert row["gold"]["low"] < row["gold"]["mean"] < row["gold"]["high"]
        assert 0 <= row["win_rate"]["mean"] <= 1 and row["held_out"]["gold"]["se"] > 0
        assert row["length"] >= 1 and row["seconds"] > 0 and row["kl"] >= 0
        assert len(row["samples"]) == len(result["prompts"]) == 3


def test_the_sft_model_is_no_distance_from_itself_and_training_moves_away(result):
    kl = {row["stage"]: row["kl"] for row in result["rows"]}
    assert abs(kl["SFT"]) < 1e-5 and min(kl["DPO"], kl["GRPO"], kl["PPO β=0"]) > 1e-3


def test_the_printed_table_and_answers_are_those_of_the_json(demo, result):
    assert table(result) in demo[1] and samples_text(result) in demo[1]
    assert all(any(line.startswith(stage) for line in demo[1].splitlines()) for stage in STAGES)


def test_the_sweep_keeps_the_curve_of_every_step(result):
    curves = [row["curve"] for row in result["rows"] if row["method"] == "PPO"]
    assert len(curves) == len(SWEEP)
    assert all([step["step"] for step in curve] == list(range(len(curve))) for curve in curves)


@pytest.mark.parametrize("name", ["reward_against_kl.png", "answers.png"])
def test_both_figures_are_written(demo, name):
    assert (demo[0] / name).read_bytes().startswith(b"\x89PNG")


def test_an_unknown_command_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["dance"])
    assert stop.value.code == 2 and "dance" in capsys.readouterr().err


def test_the_readme_shows_the_recorded_table():
    root = Path(__file__).resolve().parents[2]
    recorded = json.loads((root / "figures" / "demo.json").read_text(encoding="utf-8"))
    assert table(recorded[0]) in (root / "README.md").read_text(encoding="utf-8")
