"""The README's ratios are those of the recorded benchmarks."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def report(monkeypatch):
    for folder in (FOLDER / "workloads", FOLDER):
        monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("report")
    yield module
    for name in ("report", "scaling_fit", "common", "dpo", *module.ORDER):
        sys.modules.pop(name, None)


def recorded(report):
    """Each aim with its ratio, in the page's order; of equal works' two models the first."""
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))["workloads"]
    for name in report.ORDER:
        rows = report.rows_of(results[name])
        for aim in getattr(importlib.import_module(name), "AIMS", []):
            if (name, aim.ours) != ("reward_model", "ours, same model"):
                yield aim, report.ratio(rows, aim)


def test_the_readme_s_table_is_what_was_recorded(report):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("| two cores, float32 |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[2:4]] for row in table]
    found = list(recorded(report))
    expected = [
        [f"{ratio:.2f}", f"{'≤' if aim.at_most else '≥'} {aim.factor:g}"] for aim, ratio in found
    ]
    assert cells == expected
    met = sum(r <= a.factor if a.at_most else r >= a.factor for a, r in found)
    assert (met, len(found)) == (3, 14)
    assert "Three of fourteen aims are met" in text
