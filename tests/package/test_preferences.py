"""What `preferences.py` promises: pairs, strengths and files, broken ones included."""

import gzip
import json
import math
import os
import random
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_minimal.preferences import (
    Preference,
    bradley_terry_errors,
    elo_update,
    fit_bradley_terry,
    pairs_from_ranking,
    read_hh_rlhf,
    read_label_studio,
    split_conversation,
)

PROMPT = "\n\nHuman: Is tea good?\n\nAssistant:"


def hh_row(number=0, **changes):
    row = {"chosen": f"{PROMPT} yes, cup {number}", "rejected": f"{PROMPT} no"}
    return json.dumps(row | changes).encode()


BROKEN = {
    "bad JSON": (b'{"chosen": "half a li', "JSON"),
    "no object": (b'["chosen", "rejected"]', "list"),
    "a number": (b"17", "int"),
    "missing key": (json.dumps({"chosen": PROMPT + " yes"}).encode(), "'rejected' is missing"),
    "wrong type": (hh_row(rejected=3), "rejected must be a string, not int"),
    "null": (hh_row(chosen=None), "chosen must be a string, not NoneType"),
    "invalid UTF-8": (hh_row().replace(b"cup", b"c\xffp"), "UTF-8"),
    "no Assistant turn": (hh_row(chosen="\n\nHuman: hello"), "no Assistant turn"),
    "empty chosen": (hh_row(chosen=PROMPT + " \n"), "chosen answer is empty"),
    "empty rejected": (hh_row(rejected=PROMPT), "rejected answer is empty"),
    "prompts differ": (hh_row(rejected="\n\nHuman: Tea?\n\nAssistant: no"), "differ before"),
    "one more turn": (hh_row(rejected=PROMPT + " no\n\nAssistant: I mean it"), "differ before"),
    "same answers": (hh_row(rejected=PROMPT + " yes, cup 0"), "same answer"),
    "half a character": (hh_row(chosen=PROMPT + " \ud800"), "no text"),
    "nested too deep": (b"[" * 200_000, ""),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_row_is_named_and_its_neighbours_are_kept(tmp_path, kind):
    line, reason = BROKEN[kind]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\n".join([hh_row(1), line, hh_row(2)]) + b"\n")
    preferences, skipped = read_hh_rlhf(path)
    assert [pair.chosen for pair in preferences] == [" yes, cup 1", " yes, cup 2"]
    assert [row.line for row in skipped] == [2]
    assert reason in skipped[0].reason


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(st.sampled_from(["good", "blank", *BROKEN]), min_size=1, max_size=25))
def test_every_row_is_either_kept_or_named(tmp_path_factory, kinds):
    lines = [
        hh_row(number) if kind == "good" else b"" if kind == "blank" else BROKEN[kind][0]
        for number, kind in enumerate(kinds)
    ]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    good = [f" yes, cup {number}" for number, kind in enumerate(kinds) if kind == "good"]
    bad = [place for place, kind in enumerate(kinds, 1) if kind not in ("good", "blank")]
    if not good and not bad:
        with pytest.raises(ValueError, match="holds no rows"):
            read_hh_rlhf(path)
        return
    preferences, skipped = read_hh_rlhf(path)
    assert [pair.chosen for pair in preferences] == good
    assert [row.line for row in skipped] == bad


def test_prompt_and_answer_are_the_text_cut_at_its_last_assistant_turn(tmp_path):
    chosen = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(hh_row(chosen=chosen, rejected=chosen + "!"))
    (pair,), skipped = read_hh_rlhf(path)
    assert pair == Preference(chosen[:-2], " d", " d!")
    assert skipped == []


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + hh_row(1) + b"\r\n" + hh_row(2) + b"\r\n")
    preferences, skipped = read_hh_rlhf(path)
    assert (len(preferences), skipped) == (2, [])


def test_a_gzip_file_cut_short_keeps_every_whole_row(tmp_path):
    noise = random.Random(0)  # incompressible, so that the cut falls among the rows
    answers = [f"{PROMPT} {noise.randbytes(40).hex()}" for _ in range(300)]
    rows = b"\n".join(hh_row(rejected=answer) for answer in answers)
    damaged = gzip.compress(rows)[:-2000]
    whole = zlib.decompressobj(wbits=31).decompress(damaged).count(b"\n")
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(damaged)
    preferences, skipped = read_hh_rlhf(path)
    assert 0 < whole < 299
    assert len(preferences) == whole
    assert [row.line for row in skipped] == [whole + 1]
    assert "damaged" in skipped[0].reason


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.jsonl"):
        read_hh_rlhf(tmp_path / "missing.jsonl")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        read_hh_rlhf(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="holds no rows"):
        read_hh_rlhf(tmp_path / "empty.jsonl")


@pytest.mark.skipif("RLHF_HH_FILE" not in os.environ, reason="RLHF_HH_FILE names no file")
def test_the_harmless_test_set_has_nine_rows_that_are_no_comparison():
    preferences, skipped = read_hh_rlhf(os.environ["RLHF_HH_FILE"])
    differ = [row.line for row in skipped if "differ before" in row.reason]
    empty = [row.line for row in skipped if "chosen answer is empty" in row.reason]
    assert len(preferences) == 2303
    assert differ == [1255, 1689, 1951, 1953, 2037]
    assert empty == [87, 517, 926, 1104]
    assert len(skipped) == 9


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        (("p", "a", "a"), ValueError, "same answer"),
        (("p", " ", "b"), ValueError, "chosen is empty"),
        (("", "a", "b"), ValueError, "prompt is empty"),
        (("p", "a", None), TypeError, "rejected must be a string, not NoneType"),
    ],
)
def test_what_is_no_comparison_is_refused(fields, error, words):
    with pytest.raises(error, match=words):
        Preference(*fields)


@given(st.lists(st.text("abc", min_size=1), min_size=2, max_size=9, unique=True))
def test_a_ranking_gives_each_pair_once_the_better_first(answers):
    pairs = [(p.chosen, p.rejected) for p in pairs_from_ranking("?", answers)]
    assert len(pairs) == len(set(pairs)) == math.comb(len(answers), 2)
    assert all(answers.index(better) < answers.index(worse) for better, worse in pairs)


@pytest.mark.parametrize("ranking", [[], ["one"], ["a", "b", "a"]])
def test_a_ranking_needs_two_different_answers(ranking):
    with pytest.raises(ValueError, match=r"two|twice"):
        pairs_from_ranking("?", ranking)


def test_a_string_is_no_ranking():
    with pytest.raises(TypeError, match="list of answers"):
        pairs_from_ranking("?", "ab")


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: a\n\nAssistant:", [("user", "a")]),
        ("\n\nHuman: a\n\nAssistant: b", [("user", "a"), ("assistant", "b")]),
        ("\n\nHuman: a\n\nb\n\nAssistant:", [("user", "a\n\nb")]),
        ("\n\nAssistant: Human: b", [("assistant", "Human: b")]),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant:", [("user", "a\n\nb")]),
        ("Human: a\n\nAssistant: b", [("user", "a"), ("assistant", "b")]),
        ("just a question", [("user", "just a question")]),
        ("", []),
    ],
)
def test_a_transcript_becomes_messages(text, turns):
    assert split_conversation(text) == [{"role": role, "content": what} for role, what in turns]


# Bradley–Terry and Elo


@given(st.integers(1, 500), st.integers(1, 500))
def test_two_items_differ_by_the_log_of_their_odds(wins, losses):
    strengths = fit_bradley_terry([[0, wins], [losses, 0]])
    # Newton stops when a step is below 1e-10, and it converges quadratically.
    assert (strengths[0] - strengths[1]).item() == pytest.approx(math.log(wins / losses), abs=1e-9)
    errors = bradley_terry_errors([[0, wins], [losses, 0]])
    assert 2 * errors[0].item() == pytest.approx(math.sqrt(1 / wins + 1 / losses), rel=1e-6)


def expected_wins(strengths, games):
    wins = games * torch.sigmoid(strengths[:, None] - strengths[None, :])
    return wins.fill_diagonal_(0)


def test_expected_counts_give_the_strengths_back():
    true = torch.tensor([2.0, 0.5, 0.0, -1.0, -4.0], dtype=torch.float64)
    fitted = fit_bradley_terry(expected_wins(true, 40.0))
    torch.testing.assert_close(fitted, true - true.mean(), rtol=0, atol=1e-9)


def test_sampled_counts_lie_within_their_standard_errors():
    generator = torch.Generator().manual_seed(0)
    true = torch.linspace(-1.5, 1.5, 8, dtype=torch.float64)
    z = []
    for _ in range(60):
        chances = torch.sigmoid(true[:, None] - true[None, :]).triu(1)
        upper = torch.binomial(torch.full_like(chances, 30.0), chances, generator=generator).triu(1)
        wins = upper + (30.0 * torch.ones(8, 8, dtype=torch.float64).triu(1) - upper).T
        z.append((fit_bradley_terry(wins) - true) / bradley_terry_errors(wins))
    squares = torch.stack(z).square()
    # 480 z² of mean 1 and variance 2, about independent: a standard error of √(2/480) = 0.065.
    assert squares.mean().item() == pytest.approx(1.0, abs=4 * 0.065)


def test_the_fit_is_where_expected_wins_equal_the_counts():
    wins = torch.tensor([[0, 900, 1, 0], [1, 0, 3, 7], [0, 2, 0, 1], [1, 0, 5, 0.0]])
    strengths = fit_bradley_terry(wins)
    games = (wins + wins.T).double()
    expected = (games * torch.sigmoid(strengths[:, None] - strengths[None, :])).sum(1)
    torch.testing.assert_close(expected, wins.sum(1).double(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("wins", "words"),
    [
        ([[0, 3], [0, 0]], r"items \[1\] ever beat one of \[0\]"),
        ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], r"items \[0, 1\] ever beat one of \[2\]"),
        ([[0, 1, 2], [1, 0, 0], [0, 0, 0]], r"items \[2\] ever beat one of \[0, 1\]"),
        ([[0, -1], [1, 0]], r"wins\[0, 1\] is -1"),
        ([[2, 1], [1, 0]], r"wins\[0, 0\] is 2"),
        ([[0, math.nan], [1, 0]], r"wins\[0, 1\] is nan"),
        ([[0, 1, 1], [1, 0, 1]], r"shape \(2, 3\)"),
        ([[0]], r"shape \(1, 1\)"),
    ],
)
def test_counts_without_an_estimate_are_refused(wins, words):
    with pytest.raises(ValueError, match=words):
        fit_bradley_terry(wins)


def test_a_chain_of_wins_connects():
    circle = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    torch.testing.assert_close(fit_bradley_terry(circle), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("ratings", "score", "after"),
    [
        ((1500, 1500), 1, (1516, 1484)),
        ((1500, 1500), 0.5, (1500, 1500)),
        ((1400, 1000), 1, (1400 + 32 / 11, 1000 - 32 / 11)),  # expected score 10/11
        ((1000, 1400), 1, (1000 + 320 / 11, 1400 - 320 / 11)),
        ((0, 1e9), 0, (0, 1e9)),
    ],
)
def test_elo_moves_by_k_times_the_surprise(ratings, score, after):
    assert elo_update(*ratings, score) == pytest.approx(after, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [("score_a", 2), ("score_a", math.nan), ("k", 0), ("k", -1), ("rating_b", math.nan)],
)
def test_elo_refuses_numbers_out_of_range(name, value):
    good = {"rating_a": 1500, "rating_b": 1500, "score_a": 1}
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        elo_update(**(good | {name: value}))


# Label Studio

BODIES = {"m1": "first", "m2": "second", "m3": "third"}
ITEMS = [{"id": identity, "body": body} for identity, body in BODIES.items()]


def task(*rankings, **changes):
    results = [[{"type": "ranker", "value": {"ranker": {"rank": order}}}] for order in rankings]
    annotations = [{"was_cancelled": False, "result": result} for result in results]
    return {"data": {"prompt": "Which?", "items": ITEMS}, "annotations": annotations} | changes


def read_tasks(tmp_path, tasks):
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    return read_label_studio(path)


def test_each_annotator_s_ranking_gives_its_pairs(tmp_path):
    pairs, skipped = read_tasks(tmp_path, [task(["m2", "m3", "m1"], ["m1", "m2", "m3"])])
    assert [(p.chosen, p.rejected) for p in pairs[:3]] == [
        ("second", "third"),
        ("second", "first"),
        ("third", "first"),
    ]
    assert (len(pairs), skipped) == (6, [])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (task(annotations=[]), "no annotations"),
        (task(annotations=[{"was_cancelled": True, "result": []}]), "cancelled"),
        (task(annotations=[{"was_cancelled": False, "result": []}]), "not finished"),
        (task(annotations=[{}]), "'result' is missing"),
        (task(["m1", "m2"]), "the items are"),
        (task(["m1", "m2", "m9"]), "the items are"),
        (task(["m1", "m2", "m3"], data={"prompt": "?"}), "'items' is missing"),
        ("no task", "no annotations"),
        (
            task(
                annotations=[
                    {"result": [{"type": "ranker", "value": {"ranker": {"good": ["m1"], "_": []}}}]}
                ]
            ),
            "buckets",
        ),
    ],
)
def test_an_unusable_annotation_is_named_and_the_others_are_kept(tmp_path, bad, reason):
    good = task(["m1", "m2", "m3"])
    pairs, skipped = read_tasks(tmp_path, [good, bad, good])
    assert len(pairs) == 6
    assert [row.line for row in skipped] == [2]
    assert reason in skipped[0].reason


@pytest.mark.parametrize("text", ["{not json", "{}", "[]"])
def test_what_is_no_export_is_refused(tmp_path, text):
    path = tmp_path / "export.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"export\.json is (not valid JSON|no Label Studio)"):
        read_label_studio(path)
