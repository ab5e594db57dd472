"""What `python -m rlhf_minimal dpo` promises, on a model and a file small enough for a test."""

import argparse
import json
import random

import pytest
import torch
from tiny_llama import tiny_model, tiny_tokenizer

from rlhf_minimal.dpo import dpo_loss, reference_log_probs
from rlhf_minimal.dpo_cli import add_dpo_command
from rlhf_minimal.engine import Engine
from rlhf_minimal.held_out import (
    held_out_report,
    mean_interval,
    split_by_prompt,
    wilson_interval,
)
from rlhf_minimal.history import History
from rlhf_minimal.large_models import load_model, padding_id, tokenize_preferences
from rlhf_minimal.pairs import TokenPair, pair_log_probs, train_on_pairs
from rlhf_minimal.preferences import Preference, read_hh_rlhf

STEPS = 24


def main(*arguments) -> int:
    parser = argparse.ArgumentParser(prog="python -m rlhf_minimal")
    add_dpo_command(parser.add_subparsers(required=True))
    parsed = parser.parse_args([str(argument) for argument in arguments])
    return parsed.run(parsed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, and pairs whose chosen answers are polite; two of the rows are broken."""
    folder = tmp_path_factory.mktemp("dpo")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    noise, lines = random.Random(0), ["{broken", '{"chosen": "no turn", "rejected": "no turn"}']
    for number in range(60):
        prompt = f"\n\nHuman: question {number}\n\nAssistant:"
        dish = noise.choice(["tea", "soup", "rice"])
        row = {"chosen": f"{prompt} {dish}, please", "rejected": f"{prompt} {dish}, now"}
        lines.append(json.dumps(row))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


def options(folder, out, steps=STEPS, **changes):
    chosen = {"model": folder / "model", "pairs": folder / "pairs.jsonl", "out": out}
    chosen |= {"steps": steps, "lr": 3e-3, "held-out": 20, "beta": 0.5} | changes
    given = [part for name, value in chosen.items() for part in (f"--{name}", value)]
    return ["dpo", "--quiet", *given]


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """One run of the command, from which several tests read."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(*options(folder, out)) == 0
    return out


def test_a_learnable_preference_is_learnt(finished):
    loss = History.load(finished / "history.json")["loss"]
    assert len(loss) == STEPS
    assert loss[0] == pytest.approx(0.6931, abs=1e-3)  # policy and reference agree
    assert sum(loss[-5:]) / 5 < 0.2  # polite against rude: one word tells them apart
    report = json.loads((finished / "result.json").read_text())["held_out"]
    assert report["reward_accuracy_after"]["value"] > 0.9
    assert report["reward_margin_after"]["interval"][0] > 0


def test_the_report_names_skipped_rows_and_numbers_before_and_after(folder, tmp_path, capsys):
    assert main(*options(folder, tmp_path / "out", steps=1)) == 0
    printed = capsys.readouterr().out
    assert "60 good pairs" in printed
    assert "2 rows skipped" in printed
    assert "1 x chosen has no Assistant turn" in printed
    assert "(line 1)" in printed
    for words in ("before", "after", "summed", "per token", "0.500 by definition", "s a step"):
        assert words in printed


def test_the_result_file_says_what_was_run_and_holds_no_path(finished, folder):
    text = (finished / "result.json").read_text()
    result = json.loads(text)
    assert result["settings"]["steps"] == STEPS
    assert result["settings"]["beta"] == 0.5
    assert (result["training_pairs"], result["held_out_pairs"]) == (40, 20)
    assert result["truncated"] == {"training": 0, "held_out": 0}
    assert sum(result["skipped"].values()) == 2
    assert result["interrupted"] is False
    assert str(folder) not in text


def test_the_saved_model_gives_the_trained_one_s_numbers(finished, folder):
    model, tokenizer = load_model(finished / "model", device="cpu")
    preferences, _ = read_hh_rlhf(folder / "pairs.jsonl")
    _, held_out = split_by_prompt(preferences, 20, seed=0)
    pairs, _ = tokenize_preferences(held_out, tokenizer)
    lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs]).float()
    before = reference_log_probs(tiny_model(), pairs, padding_id(tokenizer), batch_size=4)
    after = reference_log_probs(model, pairs, padding_id(tokenizer), batch_size=4)
    expected = held_out_report(before, after, lengths, beta=0.5)
    written = json.loads((finished / "result.json").read_text())["held_out"]
    assert written["reward_margin_after"]["value"] == pytest.approx(
        expected["reward_margin_after"]["value"], rel=1e-5
    )
    assert written["summed_accuracy_after"]["value"] == expected["summed_accuracy_after"]["value"]


def test_the_same_seed_gives_the_same_numbers(finished, folder, tmp_path):
    assert main(*options(folder, tmp_path)) == 0
    first, second = (History.load(out / "history.json").rows for out in (finished, tmp_path))
    assert first == second


def test_a_run_that_is_interrupted_leaves_its_history_and_model(
    folder, tmp_path, monkeypatch, capsys
):
    steps, step = [], Engine.step

    def press_ctrl_c_at_the_fourth_step(engine, lr):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step(engine, lr)

    monkeypatch.setattr(Engine, "step", press_ctrl_c_at_the_fourth_step)
    assert main(*options(folder, tmp_path)) == 130
    history = History.load(tmp_path / "history.json")
    assert (len(history), history.interrupted) == (3, True)
    assert json.loads((tmp_path / "result.json").read_text())["interrupted"] is True
    model, _ = load_model(tmp_path / "model", device="cpu")
    weights = zip(model.parameters(), tiny_model().parameters(), strict=True)
    assert any(not torch.equal(trained, initial) for trained, initial in weights)
    assert "so far" in capsys.readouterr().err


def test_save_every_saves_the_state_on_the_way(folder, tmp_path, monkeypatch):
    saved_at, step, done = [], Engine.step, []

    def fail_at_the_fourth_step(engine, lr):
        done.append(1)
        saved_at.append(torch.load(tmp_path / "state.pt", weights_only=True)["steps_done"])
        if len(done) == 4:
            raise FloatingPointError("the loss is nan")
        return step(engine, lr)

    monkeypatch.setattr(Engine, "step", fail_at_the_fourth_step)
    assert main(*options(folder, tmp_path), "--save-every", 2) == 2
    assert saved_at == [0, 0, 2, 2]
    assert len(History.load(tmp_path / "history.json")) == 3


def test_ipo_runs(folder, tmp_path):
    assert main(*options(folder, tmp_path, steps=2, loss="ipo", beta=0.5)) == 0
    loss = History.load(tmp_path / "history.json")["loss"]
    assert loss[0] == pytest.approx(1.0, abs=1e-4)  # 1/(4β²) where policy and reference agree


# Errors of the user


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "/no/such/model"}, "there is no directory /no/such/model"),
        ({"pairs": "/no/such/file.jsonl"}, "there is no file /no/such/file.jsonl"),
        ({"held-out": 60}, "held_out is 60 but there are 60 good pairs"),
        ({"max-prompt": 300}, "--max-prompt is 300"),
        ({"gguf": "weights.gguf"}, "holds no weights.gguf; it holds"),
        ({"loss": "ipo", "label-smoothing": 0.1}, "--label-smoothing belongs to --loss dpo"),
    ],
)
def test_what_the_user_can_mend_is_told_in_one_line(folder, tmp_path, capsys, changes, words):
    assert main(*options(folder, tmp_path, **changes)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "0"),
        ("steps", "many"),
        ("beta", "0"),
        ("beta", "-1"),
        ("lr", "nan"),
        ("label-smoothing", "0.5"),
        ("loss", "ppo"),
        ("schedule", "square"),
        ("held-out", "1"),
        ("seed", "-1"),
    ],
)
def test_values_out_of_range_are_argument_errors(folder, tmp_path, capsys, name, value):
    with pytest.raises(SystemExit) as stop:
        main(*options(folder, tmp_path, **{name: value}))
    assert stop.value.code == 2
    assert f"argument --{name}" in capsys.readouterr().err


# The loop and the numbers behind the command


def random_pairs(count, seed=0):
    noise = random.Random(seed)
    draw = lambda: [noise.randrange(256) for _ in range(noise.randint(1, 12))]  # noqa: E731
    return [TokenPair(draw(), draw(), draw()) for _ in range(count)]


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_gradients_of_micro_batches_add_up_to_the_batch_s(micro_batch, monkeypatch):
    gradients = []

    def keep_gradients(engine, lr):
        gradients.append([p.grad.clone() for p in engine.optimizer.param_groups[0]["params"]])
        engine.optimizer.zero_grad()
        return 0.0

    monkeypatch.setattr(Engine, "step", keep_gradients)
    pairs, losses = random_pairs(7), []
    reference = torch.zeros(7, 2, dtype=torch.float64)

    def pair_loss(log_probs, rows):
        expected = reference[rows]
        sums = (log_probs.chosen, log_probs.rejected, expected[:, 0], expected[:, 1])
        return dpo_loss(*sums, beta=0.1), {}

    for size in (None, micro_batch):
        history = train_on_pairs(
            tiny_model().double(),
            pairs,
            pair_loss,
            steps=1,
            batch_size=7,
            micro_batch=size,
            show_progress=False,
        )
        losses.append(history["loss"][0])
    # The output layer's logits are float32 by design, so float32 ulps remain.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_reference_log_probs_are_in_the_order_of_the_pairs():
    model, pairs = tiny_model(), random_pairs(9)
    together = reference_log_probs(model, pairs, 257, batch_size=4)
    with torch.no_grad():
        alone = [pair_log_probs(model, [pair], 257) for pair in pairs]
    expected = torch.stack([torch.cat([a.chosen, a.rejected]) for a in alone])
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_held_out_prompts_are_never_trained_on(seed):
    noise = random.Random(seed)
    data = [Preference(f"prompt {noise.randrange(30)}", f"a{n}", f"b{n}") for n in range(100)]
    training, aside = split_by_prompt(data, 20, seed)
    assert sorted(training + aside) == sorted(data)
    assert not {p.prompt for p in training} & {p.prompt for p in aside}
    assert len(aside) >= 20
    assert split_by_prompt(data, 20, seed)[1] == aside
    assert split_by_prompt(data, 20, seed + 1)[1] != aside


def test_wilson_s_interval_by_hand():
    # 0 of 10: the upper bound is z²/(n + z²); 10 of 10 mirrors it.
    z2 = 1.959964**2
    assert wilson_interval(0, 10) == pytest.approx((0.0, z2 / (10 + z2)))
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + z2), 1.0))
    with pytest.raises(ValueError, match="wins is 11"):
        wilson_interval(11, 10)


def wilson_of(outcomes):
    return wilson_interval(outcomes.sum().item(), len(outcomes))


@pytest.mark.parametrize("interval", [mean_interval, wilson_of])
def test_intervals_hold_the_truth_nineteen_times_in_twenty(interval):
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(1000, 200, generator=generator) < 0.4
    held = [low <= 0.4 <= high for low, high in (interval(row.double()) for row in samples)]
    # 1000 draws at 95%: a standard error of 0.007; the discrete share may move the level by 0.01.
    assert sum(held) / 1000 == pytest.approx(0.95, abs=0.01 + 4 * 0.007)


def test_the_report_counts_by_hand():
    before = torch.tensor([[-10.0, -12.0], [-10.0, -8.0]])
    after = torch.tensor([[-11.0, -14.0], [-7.0, -8.0]])
    lengths = torch.tensor([[1.0, 4.0], [5.0, 4.0]])
    report = {k: v["value"] for k, v in held_out_report(before, after, lengths, beta=0.5).items()}
    assert report["summed_accuracy_before"] == 0.5
    assert report["summed_accuracy_after"] == 1.0
    assert report["summed_accuracy_change"] == 0.5
    # per token before: −10 against −3 and −2 against −2, a tie; after: −11 < −3.5 and −1.4 > −2
    assert report["per_token_accuracy_before"] == 0.25
    assert report["per_token_accuracy_after"] == 0.5
    # implicit rewards: 0.5·(−1, −2) and 0.5·(3, 0): margins 0.5 and 1.5
    assert report["reward_accuracy_after"] == 1.0
    assert report["reward_margin_after"] == 1.0
    assert report["chosen_log_ratio_after"] == 1.0
    assert report["rejected_log_ratio_after"] == -1.0
