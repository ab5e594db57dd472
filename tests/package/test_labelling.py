"""What the labelling widget and its files promise: nothing is lost or asked twice."""

import json
import random

import pytest

from rlhf_minimal.gold_reward import Annotator, gold_reward
from rlhf_minimal.label_files import (
    Comparison,
    Label,
    LabelFile,
    comparisons,
    labels_to_preferences,
    read_labels,
)
from rlhf_minimal.labelling import LabellingWidget, click_through
from rlhf_minimal.toy_world import sample_prompts, write_answer

ASKED = comparisons([(f"question {i} ?", f"good {i}", f"bad {i}") for i in range(40)])


def takes_good(prompt, left, right):
    return "left" if left.startswith("good") else "right"


def written(**changes):
    """A line of a file of labels, with something in it changed."""
    row = {**ASKED[0]._asdict(), "choice": "tie", "left": "first", "annotator": "mia"}
    return json.dumps(row | changes)


def widget(path, **options):
    return LabellingWidget(ASKED, path, **{"annotator": "mia"} | options)


def test_a_script_clicks_through_and_the_file_holds_what_it_chose(tmp_path):
    path = tmp_path / "labels.jsonl"
    assert click_through(widget(path), takes_good) == 40
    pairs = labels_to_preferences(read_labels(path)[0])
    assert [pair.chosen for pair in pairs] == [f"good {i}" for i in range(40)]
    assert pairs[3] == ("question 3 ?", "good 3", "bad 3")


def test_sides_are_drawn_and_recorded(tmp_path):
    asked = widget(tmp_path / "labels.jsonl")
    seen = []
    click_through(asked, lambda prompt, left, right: seen.append(left) or "left")
    assert [getattr(label.comparison, label.left) for label in asked.labels] == seen
    assert 8 <= sum(label.left == "first" for label in asked.labels) <= 32  # 40 coin tosses, 4 sd


def test_always_left_is_no_preference_for_first(tmp_path):
    asked = widget(tmp_path / "labels.jsonl")
    click_through(asked, lambda *shown: "left")
    assert {label.choice for label in asked.labels} == {"first", "second"}


def test_a_label_is_on_disk_before_the_next_question_stands(tmp_path):
    path = tmp_path / "labels.jsonl"
    asked = widget(path)
    for number in range(1, 4):
        click_through(asked, lambda *shown: "tie", limit=1)
        assert len(path.read_text().splitlines()) == number
        assert asked.current == ASKED[number]


def test_a_new_widget_goes_on_where_the_last_one_stopped(tmp_path):
    path = tmp_path / "labels.jsonl"
    first = widget(path)
    click_through(first, takes_good, limit=7)
    shown = first.shown()
    resumed = widget(path)
    assert (resumed.progress.value, resumed.current) == (7, ASKED[7])
    assert resumed.shown() == shown
    assert click_through(resumed, takes_good) == 33


@pytest.mark.parametrize("kept_bytes", [1, 20, -1])
def test_a_half_written_line_costs_that_line_alone(tmp_path, kept_bytes):
    path = tmp_path / "labels.jsonl"
    click_through(widget(path), takes_good, limit=3)
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last.rstrip(b"\n")[:kept_bytes])
    resumed = widget(path)
    assert resumed.current == ASKED[2]
    assert [row.line for row in resumed.file.skipped] == [3]
    click_through(resumed, takes_good)
    labels, skipped = read_labels(path)
    assert sorted(int(label.comparison.id) for label in labels) == list(range(40))
    assert len(skipped) == 1


def test_a_whole_line_without_its_newline_counts(tmp_path):
    path = tmp_path / "labels.jsonl"
    click_through(widget(path), takes_good, limit=2)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    click_through(widget(path), takes_good, limit=1)
    labels, skipped = read_labels(path)
    assert ([label.comparison.id for label in labels], skipped) == (["0", "1", "2"], [])


def test_undo_takes_back_the_last_label_also_after_a_restart(tmp_path):
    path = tmp_path / "labels.jsonl"
    click_through(widget(path), takes_good, limit=3)
    resumed = widget(path)
    resumed.undo.click()
    resumed.undo.click()
    assert [label.comparison.id for label in read_labels(path)[0]] == ["0"]
    assert resumed.current == ASKED[1]
    assert len(path.read_text().splitlines()) == 5  # nothing was erased


def test_undo_with_nothing_done_does_nothing(tmp_path):
    asked = widget(tmp_path / "labels.jsonl")
    asked.undo.click()
    assert (asked.undo.disabled, asked.file.path.exists()) == (True, False)


def test_clicks_after_the_last_comparison_add_nothing(tmp_path):
    asked = widget(tmp_path / "labels.jsonl")
    click_through(asked, takes_good)
    asked.left.click()
    assert (len(asked.labels), asked.left.disabled, asked.undo.disabled) == (40, True, False)
    asked.undo.click()
    assert asked.current == ASKED[39]


def test_a_double_click_is_one_label(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("rlhf_minimal.labelling.time.monotonic", lambda: now)
    asked = widget(tmp_path / "labels.jsonl")
    asked.left.click()
    now = 100.3
    asked.left.click()
    assert (len(asked.labels), asked.current) == (1, ASKED[1])
    assert "so soon" in asked.message.value
    now = 101.0  # the click that was not counted does not make this one hasty
    asked.right.click()
    assert (len(asked.labels), asked.message.value) == (2, "2 of 40")
    asked.undo.click()
    asked.undo.click()
    assert asked.labels == []


def test_two_widgets_on_one_file_label_nothing_twice(tmp_path):
    path = tmp_path / "labels.jsonl"
    old, new = widget(path), widget(path)
    click_through(new, takes_good, limit=3)
    old.left.click()
    assert "has changed" in old.message.value
    assert (old.progress.value, old.current) == (3, ASKED[3])
    old.left.click()
    new.undo.click()
    assert len(read_labels(path)[0]) == 4  # the click said what happened, and took nothing back
    assert (new.labels, new.current) == (read_labels(path)[0], ASKED[4])


def test_a_file_that_became_somebody_elses_is_left_alone(tmp_path):
    path = tmp_path / "labels.jsonl"
    mine = widget(path)
    click_through(widget(path, annotator="tom"), takes_good, limit=2)
    before = path.read_bytes()
    mine.left.click()
    mine.left.click()
    assert "not saved" in mine.message.value
    assert "&#x27;tom&#x27;" in mine.message.value
    assert path.read_bytes() == before


def test_a_page_without_widgets_says_what_is_missing(tmp_path):
    asked = comparisons([(f"question {i} ?", "good", "bad") for i in range(1000)])
    shown = LabellingWidget(asked, tmp_path / "labels.jsonl")._repr_mimebundle_()["text/plain"]
    assert shown.startswith("0 of 1000 labelled. No buttons here? Install ipywidgets")
    assert shown.endswith("reload.")  # not cut


def test_texts_are_shown_escaped(tmp_path):
    asked = comparisons([("<script>alert(1)</script> & co", "<b>bold</b>", "plain")])
    shown = LabellingWidget(asked, tmp_path / "labels.jsonl")
    html = shown.prompt.value + shown.texts[0].value + shown.texts[1].value
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in html
    assert "&lt;b&gt;bold&lt;/b&gt;" in html


def test_a_label_that_cannot_be_saved_is_said_and_not_counted(tmp_path):
    (tmp_path / "taken").write_text("a file where a folder is needed")
    asked = widget(tmp_path / "labels.jsonl")
    asked.file.path = tmp_path / "taken" / "labels.jsonl"
    asked.left.click()
    assert "not saved" in asked.message.value
    assert (asked.current, asked.labels) == (ASKED[0], [])
    with pytest.raises(OSError, match="not saved"):
        click_through(asked, takes_good)


def test_a_file_of_somebody_else_or_of_other_texts_is_refused(tmp_path):
    path = tmp_path / "labels.jsonl"
    click_through(widget(path), takes_good, limit=1)
    with pytest.raises(ValueError, match="'mia', not 'tom'"):
        widget(path, annotator="tom")
    with pytest.raises(ValueError, match="other texts"):
        LabellingWidget(comparisons([("new ?", "a", "b")]), path, annotator="mia")


@pytest.mark.parametrize("asked", [[], [ASKED[0], ASKED[0]]])
def test_comparisons_need_ids_of_their_own(tmp_path, asked):
    with pytest.raises(ValueError, match="different ids"):
        LabellingWidget(asked, tmp_path / "labels.jsonl")


def test_choose_must_name_a_button(tmp_path):
    with pytest.raises(ValueError, match="'up'"):
        click_through(widget(tmp_path / "labels.jsonl"), lambda *shown: "up")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "list"),
        ('{"undo": "9"}', "no label"),
        ('{"id": "1"}', "missing"),
        (written(choice="up"), "'up'"),
        (written(left="tie"), "left 'tie'"),
        (written(id=3), "strings"),
    ],
)
def test_a_line_that_is_no_label_is_named(tmp_path, line, reason):
    path = tmp_path / "labels.jsonl"
    LabelFile(path).append(Label(ASKED[0], "first", "second", "mia"))
    with path.open("a") as file:
        file.write(line + "\n")
    labels, skipped = read_labels(path)
    assert (len(labels), [row.line for row in skipped]) == (1, [2])
    assert reason in skipped[0].reason


def test_ties_are_no_pairs():
    label = Label(Comparison("0", "?", "a", "b"), "tie", "first", "mia")
    assert labels_to_preferences([label]) == []


def test_equal_answers_are_no_comparison():
    with pytest.raises(ValueError, match="same answer"):
        comparisons([("?", "a", "a")])


def test_the_simulated_annotator_can_use_the_widget(tmp_path):
    rng = random.Random(0)
    triples = [(p, write_answer(p, rng), write_answer(p, rng)) for p in sample_prompts(60, seed=3)]
    asked = comparisons([t for t in triples if t[1] != t[2]])
    mia = Annotator(temperature=0.2)
    clicked = LabellingWidget(asked, tmp_path / "labels.jsonl", annotator="mia")
    click_through(clicked, lambda *shown: "left" if mia.prefers_first(*shown, rng) else "right")
    gains = [
        gold_reward(pair.prompt, pair.chosen) - gold_reward(pair.prompt, pair.rejected)
        for pair in labels_to_preferences(clicked.labels)
    ]
    assert sum(gain >= 0 for gain in gains) > 0.85 * len(gains)
