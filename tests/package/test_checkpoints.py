"""What `checkpoints.py` promises: adapters, merged models and runs come back from the disk."""

import contextlib
import json

import pytest
import torch
from safetensors import safe_open
from tiny_llama import WIDE, tiny_model, tiny_tokenizer
from torch import nn

from rlhf_minimal.checkpoints import (
    load_lora,
    read_state,
    restore_state,
    save_lora,
    save_merged,
    save_state,
)
from rlhf_minimal.engine import Engine
from rlhf_minimal.history import History
from rlhf_minimal.large_models import load_model
from rlhf_minimal.lora import add_lora, lora_parameters, merge_lora
from rlhf_minimal.nf4 import quantize_linears
from rlhf_minimal.pairs import TokenPair, train_on_pairs
from rlhf_minimal.quantized import prepare_for_training, quantize_model

TOKENS = torch.arange(2, 26).view(2, 12)
STEPS = 5


def adapted(targets=("q_proj", "down_proj"), rank=4, alpha=8.0, seed=1, base=None):
    model = add_lora(tiny_model() if base is None else base, list(targets), rank, alpha)
    generator = torch.Generator().manual_seed(seed)
    for parameter in lora_parameters(model).values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


# Adapters


def test_adapters_come_back_to_the_bit(tmp_path):
    model, other = adapted(), adapted(seed=2)
    save_lora(model, tmp_path / "a.safetensors")
    assert not torch.equal(logits(model), logits(other))
    load_lora(other, tmp_path / "a.safetensors")
    assert torch.equal(logits(model), logits(other))
    assert all(p.requires_grad for p in lora_parameters(other).values())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_file_holds_the_adapters_and_nothing_else(tmp_path):
    model = adapted()
    save_lora(model, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(lora_parameters(model))
        assert file.metadata()["model.layers.0.self_attn.q_proj"] == "4 8.0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": ("q_proj",)}, r"do not have the same adapters: .*down_proj\.lora_a"),
        ({"targets": ("q_proj", "down_proj", "v_proj")}, r"same adapters: .*v_proj\.lora_a"),
        ({"rank": 2}, r"q_proj has rank and alpha 4 8\.0 in .* and 2 8\.0 in the model"),
        ({"alpha": 4.0}, r"4 8\.0 in .* and 4 4\.0 in the model"),
    ],
)
def test_adapters_of_another_shape_are_refused_and_nothing_is_read(tmp_path, changes, words):
    save_lora(adapted(), tmp_path / "a.safetensors")
    other = adapted(**changes)
    before = [p.clone() for p in lora_parameters(other).values()]
    with pytest.raises(ValueError, match=words):
        load_lora(other, tmp_path / "a.safetensors")
    assert all(map(torch.equal, before, lora_parameters(other).values()))


# Merged models

TIED, UNTIED = WIDE, WIDE | {"tie_word_embeddings": False}


@pytest.mark.parametrize("kind", ["plain", "nf4", "bitsandbytes"])
@pytest.mark.parametrize("sizes", [TIED, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("targets", [("q_proj", "up_proj"), ("q_proj", "lm_head")])
def test_a_merged_checkpoint_is_the_merged_model_in_several_files(tmp_path, kind, sizes, targets):
    make = {
        "plain": lambda: tiny_model(**sizes),
        "nf4": lambda: quantize_linears(tiny_model(**sizes)),
        "bitsandbytes": lambda: quantize_model(tiny_model(**sizes), torch.float32, "cpu"),
    }[kind]
    model = adapted(targets, base=make())
    save_merged(model, tiny_tokenizer(), tmp_path, shard_bytes=100_000)
    shards = list(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    again, tokenizer = load_model(tmp_path, device="cpu")
    assert all(type(m) is nn.Linear for m in again.modules() if hasattr(m, "in_features"))
    assert again.config.tie_word_embeddings == (sizes is TIED and "lm_head" not in targets)
    assert tokenizer("tea")["input_ids"] == tiny_tokenizer()("tea")["input_ids"]
    embedding = tiny_model(**sizes).get_input_embeddings().weight
    assert torch.equal(again.get_input_embeddings().weight, embedding)
    before = logits(model)
    if kind != "bitsandbytes":
        assert torch.equal(logits(again), logits(merge_lora(model)))
    torch.testing.assert_close(logits(again), before, rtol=1e-4, atol=1e-4)


def test_a_merged_checkpoint_s_index_names_each_tensor_once_and_its_size(tmp_path):
    model = adapted()
    save_merged(model, tiny_tokenizer(), tmp_path, dtype=torch.bfloat16, shard_bytes=10_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    held = {}
    for shard in tmp_path.glob("model-*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            held |= {name: (shard.name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    assert index["weight_map"] == {name: place for name, (place, _) in held.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for _, tensor in held.values())
    expected = set(tiny_model().state_dict()) - {"lm_head.weight"}  # tied: saved once
    assert set(held) == expected
    assert {tensor.dtype for _, tensor in held.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_the_model_in_memory_is_left_as_it_was(tmp_path):
    model = adapted(["q_proj", "lm_head"])
    before, names = logits(model), list(model.state_dict())
    save_merged(model, tiny_tokenizer(), tmp_path)
    assert torch.equal(logits(model), before)
    assert list(model.state_dict()) == names
    assert model.config.tie_word_embeddings is True


def test_an_older_model_in_the_folder_is_not_read_in_its_place(tmp_path):
    tiny_model(seed=5).save_pretrained(tmp_path)
    model = adapted()
    save_merged(model, tiny_tokenizer(), tmp_path)
    again, _ = load_model(tmp_path, device="cpu")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-5)


# Runs


def random_pairs():
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randint(0, 257, (6,), generator=generator).tolist()  # noqa: E731
    return [TokenPair(draw(), draw(), draw()) for _ in range(12)]


def run(path, stop_after=None, resume=False, dropout=0.3, lr=1e-2, lora=True):
    """Five steps with dropout, a state after each; stopped after ``stop_after``."""
    model, history = tiny_model(), History()
    if lora:
        add_lora(model, ["q_proj", "up_proj"], 2, 4.0, dropout=dropout)
    engine = Engine(model, lr)
    torch.manual_seed(11)
    engine.remember_randomness()
    settings = {"lr": lr, "steps": STEPS}
    if resume:
        restore_state(read_state(path, settings), engine, history)
        torch.manual_seed(999)  # a process that starts anew stands elsewhere,
        engine.restore_randomness(engine.randomness)  # and this puts it back
    prepare_for_training(model, checkpointing=lora)

    def after_step(done):
        save_state(path, engine, history, settings, reference=torch.ones(3))
        if done == stop_after:
            raise KeyboardInterrupt

    def pair_loss(log_probs, rows):
        return (log_probs.rejected - log_probs.chosen).mean(), {}

    options = dict(steps=STEPS, batch_size=4, lr=lr, seed=0, schedule="cosine")
    with contextlib.suppress(KeyboardInterrupt):
        train_on_pairs(
            model,
            random_pairs(),
            pair_loss,
            history=history,
            show_progress=False,
            after_step=after_step,
            engine=engine,
            **options,
        )
    return model, history


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("stop_after", [1, 2, 4, 5])
def test_a_run_stopped_after_any_step_goes_on_to_the_same_bits(tmp_path, stop_after, lora):
    whole, rows = run(tmp_path / "whole.pt", lora=lora)
    _, before = run(tmp_path / "state.pt", stop_after, lora=lora)
    assert len(before) == stop_after
    resumed, again = run(tmp_path / "state.pt", resume=True, lora=lora)
    assert again.rows == rows.rows
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def test_the_state_holds_what_is_trained_and_what_was_kept(tmp_path):
    model, _ = run(tmp_path / "state.pt")
    state = read_state(tmp_path / "state.pt", {"lr": 1e-2, "steps": STEPS})
    assert set(state["weights"]) == set(lora_parameters(model))
    assert torch.equal(state["kept"]["reference"], torch.ones(3))
    assert state["steps_done"] == len(state["rows"]) == STEPS
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]


def test_a_state_of_another_run_is_refused_by_the_setting_that_differs(tmp_path):
    run(tmp_path / "state.pt", stop_after=1)
    words = r"the interrupted run had lr = 0\.01, this one has 0\.02; give the same"
    with pytest.raises(ValueError, match=words):
        read_state(tmp_path / "state.pt", {"lr": 2e-2, "steps": STEPS})
    with pytest.raises(ValueError, match=r"had extra = None, this one has 1"):
        read_state(tmp_path / "state.pt", {"lr": 1e-2, "steps": STEPS, "extra": 1})


def test_no_state_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run to go on with: there is no .*state\.pt"):
        read_state(tmp_path / "state.pt", {})


@pytest.mark.parametrize("damage", ["half", "empty", "text", "flipped", "other"])
def test_a_damaged_state_ends_in_a_sentence(tmp_path, damage):
    path = tmp_path / "state.pt"
    run(path, stop_after=1)
    content = path.read_bytes()
    if damage == "other":
        torch.save({"weights": {}}, path)
    elif damage == "flipped":
        path.write_bytes(content[:80] + bytes([content[80] ^ 255]) * 200 + content[280:])
    else:
        path.write_bytes({"half": content[: len(content) // 2], "empty": b""}.get(damage, b"hello"))
    with pytest.raises(ValueError, match=r"state\.pt is not a state to go on from"):
        read_state(path, {"lr": 1e-2, "steps": STEPS})


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    run(path, stop_after=2)
    save = torch.save

    def half(state, beside):
        save(state, beside)
        beside.write_bytes(beside.read_bytes()[:100])
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        run(path)
    assert read_state(path, {"lr": 1e-2, "steps": STEPS})["steps_done"] == 2
