"""Label Studio: what we write for it, and a real export of 1.23 (benchmarks/label_studio.py)."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from rlhf_minimal.label_studio import label_studio_config, label_studio_tasks
from rlhf_minimal.preferences import read_label_studio

EXPORT = Path(__file__).with_name("label_studio_export.json")
GROUPS = [(f"question {i} ?", ["good", "middling", "bad"]) for i in range(30)]


def test_the_page_shows_the_prompt_and_ranks_the_items():
    page = ET.fromstring(label_studio_config("Which is best?"))
    names = {element.tag: element.attrib for element in page}
    assert names["Text"]["value"] == "$prompt"
    assert names["List"]["value"] == "$items"
    assert names["Ranker"]["toName"] == names["List"]["name"]


def test_a_title_cannot_change_the_page():
    with pytest.raises(ValueError, match="XML"):
        label_studio_config('"/><Choices name="x"')


def test_tasks_are_shuffled_and_their_ids_say_nothing(tmp_path):
    tasks = label_studio_tasks(GROUPS, tmp_path / "tasks.json", seed=3)
    assert json.loads((tmp_path / "tasks.json").read_text()) == tasks
    shown = [[item["body"] for item in task["data"]["items"]] for task in tasks]
    assert all(sorted(bodies) == sorted(GROUPS[0][1]) for bodies in shown)
    assert len({tuple(bodies) for bodies in shown}) == 6  # of 3! orders, in 30 draws
    good = [
        [int(item["id"]) for item in task["data"]["items"]].index(
            min(int(item["id"]) for item in task["data"]["items"])
        )
        for task in tasks
    ]
    assert len(set(good)) == 3  # the smallest id stands anywhere
    assert tasks == label_studio_tasks(GROUPS, seed=3)


@pytest.mark.parametrize("answers", [["one"], ["same", "same"], "text", ["", "b"]])
def test_tasks_need_different_answers(answers):
    with pytest.raises(ValueError):
        label_studio_tasks([("?", answers)])


def test_a_real_export_gives_its_pairs_and_says_what_it_left_out():
    pairs, skipped = read_label_studio(EXPORT)
    tasks = json.loads(EXPORT.read_text())
    annotations = [a for task in tasks for a in task["annotations"]]
    assert (len(tasks), len(annotations)) == (5, 6)
    # Two rankings of three and one more of each of the others: 3 + 3 + 3 + 1 pairs.
    assert len(pairs) == 10
    assert [(row.line, row.reason.split(":")[0]) for row in skipped] == [
        (4, "the annotation was cancelled"),
        (5, "the annotation was not finished"),
    ]
    pizza = [pair for pair in pairs if "pizza" in pair.prompt]
    assert all(pair.chosen.startswith("sure ,") for pair in (pizza[0], pizza[1]))
    assert {(p.chosen, p.rejected) for p in pizza} >= {(pizza[2].rejected, pizza[2].chosen)}
    assert any(pair.rejected == "take <b>banana</b> & milk ." for pair in pairs)
