"""The README's ratios are those of the recorded benchmarks."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
SHARED = ", prompts shared"


@pytest.fixture
def report(monkeypatch):
    for folder in (FOLDER / "workloads", FOLDER):
        monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("report")
    yield module
    for name in ("report", "scaling_fit", "common", "dpo", *module.ORDER):
        sys.modules.pop(name, None)


def recorded(report):
    """Each aim with its ratio, and that with prompts shared or None, in the page's order.

    Of equal works' two models the second.
    """
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))["workloads"]
    for name in report.ORDER:
        rows = report.rows_of(results[name])
        aims = {(a.ours, a.what): a for a in getattr(importlib.import_module(name), "AIMS", [])}
        for (ours, what), aim in aims.items():
            if SHARED in ours or (name, ours) == ("reward_model", "ours, same model"):
                continue
            shared = aims.get((ours + SHARED, what))
            yield aim, report.ratio(rows, aim), shared and report.ratio(rows, shared)


def aim_text(aim) -> str:
    return f"{'≤' if aim.at_most else '≥'} {aim.factor:g}"


def is_met(aim, ratio) -> bool:
    return ratio is not None and (ratio <= aim.factor if aim.at_most else ratio >= aim.factor)


def test_the_readme_s_table_is_what_was_recorded(report):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("| two cores, float32 |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[2:5]] for row in table]
    found = list(recorded(report))
    expected = [
        [f"{ratio:.2f}", f"{shared:.2f}" if shared else "", aim_text(a)]
        for a, ratio, shared in found
    ]
    assert cells == expected
    plain = sum(is_met(aim, ratio) for aim, ratio, _ in found)
    either = sum(is_met(aim, ratio) or is_met(aim, shared) for aim, ratio, shared in found)
    assert (plain, either, len(found)) == (2, 4, 14)
    assert "Two of fourteen aims are met, four with prompts shared" in text
