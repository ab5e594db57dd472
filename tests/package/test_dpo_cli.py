"""What `python -m rlhf_minimal dpo` promises, on a model and a file small enough for a test."""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import WIDE, tiny_model, tiny_tokenizer
from torch import nn

from rlhf_minimal import shared_prompts
from rlhf_minimal.checkpoints import load_lora
from rlhf_minimal.dpo import dpo_loss, reference_log_probs
from rlhf_minimal.dpo_cli import LECTURE_TARGETS, add_dpo_command
from rlhf_minimal.engine import Engine
from rlhf_minimal.held_out import (
    held_out_report,
    mean_interval,
    split_by_prompt,
    wilson_interval,
)
from rlhf_minimal.history import History
from rlhf_minimal.large_models import load_model, padding_id, tokenize_preferences
from rlhf_minimal.lora import adapters_disabled, add_lora
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


def test_shared_prompts_make_the_same_run(finished, folder, tmp_path, monkeypatch):
    rows = []
    pack = shared_prompts.pack_answers
    monkeypatch.setattr(
        shared_prompts, "pack_answers", lambda *given: rows.append(len(given[0])) or pack(*given)
    )
    assert main(*options(folder, tmp_path / "out"), "--share-prompts") == 0
    assert len(rows) > STEPS  # scored and trained with
    plain, shared = (History.load(x / "history.json")["loss"] for x in (finished, tmp_path / "out"))
    assert shared == pytest.approx(plain, abs=1e-3)


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


# Adapters on 4-bit weights

FEW = 6  # steps


@pytest.fixture(scope="module")
def wide(folder):
    """The same pairs, and a model of widths that 4-bit layers can have on a CPU."""
    tiny_model(**WIDE).save_pretrained(folder / "wide")
    tiny_tokenizer().save_pretrained(folder / "wide")
    return folder


def adapter_options(folder, out, **changes):
    changes = {"model": folder / "wide", "lora-rank": 4, "lora-dropout": 0.2} | changes
    return options(folder, out, **({"steps": FEW} | changes))


@pytest.fixture(scope="module")
def adapted(wide, tmp_path_factory):
    """One run in 4 bits that nothing interrupts, its dropout on."""
    out = tmp_path_factory.mktemp("adapted") / "out"
    more = ("--quantize", "nf4", "--merge", "--memory-ledger")
    assert main(*adapter_options(wide, out), *more) == 0
    return out


def numbers(out):
    """What must be the same, to the bit, of two runs."""
    tensors = load_file(out / "adapters.safetensors")
    held_out = json.loads((out / "result.json").read_text())["held_out"]
    rows = History.load(out / "history.json").rows
    return rows, {name: t.tolist() for name, t in tensors.items()}, held_out


def test_the_run_leaves_adapters_that_give_its_numbers_on_the_frozen_model(adapted, wide):
    model, tokenizer = load_model(wide / "wide", device="cpu", quantize=True)
    add_lora(model, LECTURE_TARGETS.split(","), 4, 8.0)  # alpha is twice the rank unless told
    load_lora(model, adapted / "adapters.safetensors")
    preferences, _ = read_hh_rlhf(wide / "pairs.jsonl")
    _, held_out = split_by_prompt(preferences, 20, seed=0)
    pairs, _ = tokenize_preferences(held_out, tokenizer)
    lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs]).float()
    with adapters_disabled(model):
        before = reference_log_probs(model, pairs, padding_id(tokenizer), batch_size=4)
    after = reference_log_probs(model, pairs, padding_id(tokenizer), batch_size=4)
    expected = held_out_report(before, after, lengths, beta=0.5)
    written = json.loads((adapted / "result.json").read_text())["held_out"]
    for name, number in expected.items():
        assert written[name]["value"] == pytest.approx(number["value"], rel=1e-5)
    assert written["reward_margin_after"]["value"] > 0


def test_the_merged_model_is_a_plain_one_with_the_trained_one_s_log_probs(adapted, wide):
    merged, tokenizer = load_model(adapted / "model", device="cpu")
    assert all(type(m) is nn.Linear for m in merged.modules() if hasattr(m, "in_features"))
    model, _ = load_model(wide / "wide", device="cpu", quantize=True)
    load_lora(add_lora(model, LECTURE_TARGETS.split(","), 4, 8.0), adapted / "adapters.safetensors")
    pairs = random_pairs(6)
    expected, found = (
        reference_log_probs(m, pairs, padding_id(tokenizer)) for m in (model, merged)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)  # sums of some 50 numbers


def test_only_the_adapters_are_trained_and_the_state_is_gone_when_all_is_done(adapted):
    result = json.loads((adapted / "result.json").read_text())
    sizes = [(64, 64), (64, 32), (64, 32), (64, 128), (64, 128), (128, 64)]
    trained = 4 * (2 * sum(a + b for a, b in sizes) + 64 + 258)
    assert result["trained_parameters"] == trained
    assert sorted(entry.name for entry in adapted.iterdir()) == [
        *("adapters.safetensors", "history.json", "model", "result.json")
    ]


def test_adapters_take_the_lecture_s_defaults(wide, tmp_path):
    assert main(*options(wide, tmp_path, steps=1, model=wide / "wide"), "--lora-rank", 2) == 0
    found = json.loads((tmp_path / "result.json").read_text())["settings"]
    assert found["lora_targets"] == LECTURE_TARGETS.split(",")
    expected = {"schedule": "cosine", "lora_alpha": 4, "lora_dropout": 0.05}
    assert found | expected == found


def test_the_ledger_is_printed_before_anything_is_loaded(wide, tmp_path, capsys, monkeypatch):
    def stop(*arguments, **options):
        raise OSError("nothing was to be loaded")

    monkeypatch.setattr("rlhf_minimal.dpo_run.load_model", stop)
    more = ("--quantize", "nf4", "--memory-ledger")
    assert main(*adapter_options(wide, tmp_path), *more) == 2
    printed = capsys.readouterr().out
    for words in ("predicted, before loading", "weights in 4 bits", "adapters", "optimizer", "GiB"):
        assert words in printed


def test_the_measured_peak_stands_beside_the_prediction(adapted, wide, tmp_path, capsys):
    memory = json.loads((adapted / "result.json").read_text())["memory"]
    assert memory["peak_bytes"] >= memory["peak_before_loading_bytes"] > 0
    assert memory["predicted_bytes"]["adapters, float32"] > 0
    assert main(*adapter_options(wide, tmp_path, steps=1)) == 0
    assert "measured peak" in capsys.readouterr().out


def test_too_little_memory_is_told_before_loading_unless_ignored(
    wide, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("rlhf_minimal.memory.available_bytes", lambda device: 1000)
    loaded = []
    monkeypatch.setattr(
        "rlhf_minimal.dpo_run.load_model", lambda *a, **k: loaded.append(a) or 1 / 0
    )
    assert main(*adapter_options(wide, tmp_path)) == 2
    error = capsys.readouterr().err
    assert "the largest part is" in error and error.count("\n") == 1
    assert loaded == []
    with pytest.raises(ZeroDivisionError):
        main(*adapter_options(wide, tmp_path), "--ignore-memory")


# Interrupted runs


def started(*arguments):
    """The command in a process of its own, which gets a signal in a step."""
    here = Path(__file__).parent
    env = os.environ | {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    env["PYTHONPATH"] = str(here.parents[1])
    given = [str(argument) for argument in arguments]
    command = [sys.executable, here / "killed.py", *given]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(("name", "steps"), [("SIGTERM", 3), ("SIGKILL", 2)])
def test_a_killed_process_s_run_goes_on_to_the_same_bits(adapted, wide, tmp_path, name, steps):
    given = [*adapter_options(wide, tmp_path / "out"), "--quantize", "nf4"]
    ended = started(name, 3, *given)
    if name == "SIGTERM":  # finishes the step, and says how to go on
        assert ended.returncode == 130, ended.stderr
        assert "--resume goes on" in ended.stderr
        assert len(History.load(tmp_path / "out" / "history.json")) == 3
    else:  # loses the step, and no other
        assert ended.returncode == -signal.SIGKILL
    state = torch.load(tmp_path / "out" / "state.pt", weights_only=True)
    assert state["steps_done"] == steps
    assert main(*given, "--resume") == 0
    assert numbers(tmp_path / "out") == numbers(adapted)
    assert not (tmp_path / "out" / "state.pt").exists()


@pytest.mark.parametrize("number", [1, FEW])
def test_ctrl_c_finishes_the_step_and_the_run_goes_on_to_the_same_bits(
    adapted, wide, tmp_path, capsys, monkeypatch, number
):
    step, handler = Engine.step, signal.getsignal(signal.SIGINT)

    def step_with_ctrl_c(engine, lr):
        if engine.steps_done == number - 1:
            signal.raise_signal(signal.SIGINT)
        return step(engine, lr)

    monkeypatch.setattr(Engine, "step", step_with_ctrl_c)
    given = [*adapter_options(wide, tmp_path), "--quantize", "nf4"]
    assert main(*given, "--save-every", 100) == 130  # so only Ctrl-C makes a state
    assert signal.getsignal(signal.SIGINT) is handler
    history = History.load(tmp_path / "history.json")
    assert (len(history), history.interrupted) == (number, True)
    assert json.loads((tmp_path / "result.json").read_text())["interrupted"] is True
    monkeypatch.setattr(Engine, "step", step)
    capsys.readouterr()
    assert main(*given, "--resume") == 0
    assert f"going on after step {number} of {FEW}" in capsys.readouterr().out
    assert numbers(tmp_path) == numbers(adapted)
    assert History.load(tmp_path / "history.json").interrupted is False


def test_a_second_ctrl_c_stops_at_once(wide, tmp_path, monkeypatch):
    step = Engine.step

    def step_with_two(engine, lr):
        if engine.steps_done == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return step(engine, lr)

    monkeypatch.setattr(Engine, "step", step_with_two)
    assert main(*adapter_options(wide, tmp_path)) == 130
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["steps_done"] == len(History.load(tmp_path / "history.json")) == 2


def test_resuming_needs_a_run_and_the_same_settings(adapted, wide, tmp_path, capsys, monkeypatch):
    given = adapter_options(wide, tmp_path)
    assert main(*given, "--resume") == 2
    assert "no run to go on with" in capsys.readouterr().err
    assert main(*adapter_options(wide, adapted), "--quantize", "nf4", "--resume") == 2
    assert "a finished one has none" in capsys.readouterr().err
    monkeypatch.setattr(Engine, "step", lambda engine, lr: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(*given)
    assert main(*adapter_options(wide, tmp_path, beta=0.4), "--resume") == 2
    error = capsys.readouterr().err
    assert "had beta = 0.5, this one has 0.4" in error and error.count("\n") == 1
    (tmp_path / "state.pt").write_bytes(b"PK" + bytes(500))
    assert main(*given, "--resume") == 2
    error = capsys.readouterr().err
    assert "is not a state to go on from" in error and error.count("\n") == 1


# Other people's models and data


def test_a_model_without_chat_template_and_a_tokenizer_without_pad_token_train(
    wide, tmp_path, recwarn
):
    tiny_model(**WIDE).save_pretrained(tmp_path / "model")
    tiny_tokenizer(chat_template=None, pad_token=None).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    assert main(*adapter_options(wide, out, model=tmp_path / "model")) == 0
    assert any("no chat template" in str(warning.message) for warning in recwarn)
    loss = History.load(out / "history.json")["loss"]
    assert loss[0] == pytest.approx(0.6931, abs=1e-3) and loss[-1] < loss[0]


class GatedRepoError(OSError):
    """As huggingface_hub's: transformers passes it on as an OSError."""


def test_a_gated_model_says_where_to_accept_its_licence(wide, tmp_path, capsys, monkeypatch):
    def gated(*arguments, **options):
        raise GatedRepoError("You are trying to access a gated repo.\n401 Client Error.")

    monkeypatch.setattr("rlhf_minimal.large_models.AutoConfig.from_pretrained", gated)
    assert main(*adapter_options(wide, tmp_path, model="mistralai/Some-7B")) == 2
    error = capsys.readouterr().err
    for words in ("'mistralai/Some-7B' is behind a licence", "accept it", "HF_TOKEN"):
        assert words in error
    assert error.count("\n") == 1


def test_pairs_come_from_the_hub_too(wide, tmp_path, monkeypatch, capsys):
    asked = []

    def download(repository, file, repo_type):
        asked.append((repository, file, repo_type))
        return str(wide / "pairs.jsonl")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    name = "hub:Anthropic/hh-rlhf:harmless-base/train.jsonl.gz"
    assert main(*adapter_options(wide, tmp_path, steps=1, pairs=name)) == 0
    assert set(asked) == {("Anthropic/hh-rlhf", "harmless-base/train.jsonl.gz", "dataset")}

    def unreachable(*arguments, **options):
        raise OSError("no network\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    capsys.readouterr()
    assert main(*adapter_options(wide, tmp_path, pairs=name)) == 2
    assert f"cannot fetch {name}: no network\n" in capsys.readouterr().err
    assert main(*adapter_options(wide, tmp_path, pairs="hub:only/one")) == 2
    assert "must be hub:OWNER/DATASET:FILE" in capsys.readouterr().err


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
        ({"quantize": "nf4"}, "add --lora-rank 32"),
        ({"lora-rank": 2, "lora-targets": "q_proj,wv"}, "no layer is called wv; there are ['down_"),
        ({"lora-rank": 500}, "rank is 500"),
        ({"lora-rank": 2, "quantize": "nf4"}, "q_proj has 32 inputs, no multiple of 64"),
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
        ("lora-rank", "0"),
        ("lora-dropout", "1"),
        ("lora-alpha", "0"),
        ("quantize", "fp4"),
        ("logits-chunk", "0"),
        ("save-every", "0"),
        ("dtype", "float64"),
    ],
)
def test_values_out_of_range_are_argument_errors(folder, tmp_path, capsys, name, value):
    with pytest.raises(SystemExit) as stop:
        main(*options(folder, tmp_path, **{name: value}))
    assert stop.value.code == 2
    assert f"argument --{name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--merge",), "there are none without --lora-rank"),
        (("--shard", "--quantize", "nf4", "--lora-rank", 2), "leave out --quantize"),
    ],
)
def test_options_that_exclude_each_other_are_told_in_one_line(
    folder, tmp_path, capsys, flags, words
):
    assert main(*options(folder, tmp_path), *flags) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


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
