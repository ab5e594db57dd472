"""What `memory.py` promises: the bytes that a run will hold, before anything is loaded."""

import json
import platform
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_llama import WIDE, tiny_model, tiny_tokenizer
from transformers import GPT2Config, MistralConfig

from rlhf_minimal import large_models, quantized
from rlhf_minimal.dpo_cli import LECTURE_TARGETS
from rlhf_minimal.engine import Engine
from rlhf_minimal.lora import add_lora, lora_parameters
from rlhf_minimal.memory import (
    available_bytes,
    check_fits,
    empty_model,
    forget_peak,
    ledger_text,
    memory_ledger,
    peak_bytes,
    return_freed_memory,
)
from rlhf_minimal.nf4 import quantize_linears
from rlhf_minimal.pairs import TokenPair, train_on_pairs
from rlhf_minimal.quantized import prepare_for_training, quantize_model
from rlhf_minimal.rehearsal import TensorsAlive

TARGETS = LECTURE_TARGETS.split(",")
# Every layer has whole blocks of 64 weights, and of 256 scales: nothing is rounded up.
SIZES = dict(hidden_size=256, intermediate_size=768, num_hidden_layers=3, tie_word_embeddings=False)
FOUR_BITS = "weights in 4 bits, scales included"


def random_pairs(tokens=64):
    noise = random.Random(0)
    draw = lambda: [noise.randrange(257) for _ in range(tokens)]  # noqa: E731
    return [TokenPair(draw(), draw(), draw()) for _ in range(2)]


def train(model, chunk=32):
    """Two steps on pairs of 2 x 128 tokens; returns the engine and the tensors alive meanwhile."""
    engine = Engine(model, 1e-4, logits_chunk=chunk)
    counted = TensorsAlive([*model.parameters(), *model.buffers()])
    with counted:
        train_on_pairs(
            model,
            random_pairs(),
            lambda log_probs, rows: ((log_probs.rejected - log_probs.chosen).mean(), {}),
            steps=2,
            batch_size=1,
            show_progress=False,
            engine=engine,
        )
    return engine, counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_sum_is_the_peak_of_a_step_to_a_tenth(dtype, checkpointing):
    model = tiny_model(**SIZES).to(dtype)
    shape = dict(sequences=2, length=128, logits_chunk=32, checkpointing=checkpointing)
    sizes = dict(weight_bytes=dtype.itemsize, lora_rank=8, targets=TARGETS)
    ledger = memory_ledger(model, **shape, **sizes)
    add_lora(model, TARGETS, 8, 16.0, dropout=0.05)
    prepare_for_training(model, checkpointing)
    _, counted = train(model)
    assert 1.0 <= sum(ledger.values()) / counted.most < 1.1
    moving = counted.most - counted.at_first - ledger["gradients"] - ledger["optimizer"]
    # Above 1: what a layer's way back has let go of while it makes gradients is counted still.
    assert 1.0 <= ledger["activations"] / moving < 1.15


def test_with_all_weights_trained_the_sum_is_above_the_peak_and_below_half_as_much_again():
    model = tiny_model(**SIZES)
    ledger = memory_ledger(model, weight_bytes=4, sequences=2, length=128, checkpointing=False)
    prepare_for_training(model, checkpointing=False)
    _, counted = train(model)
    # The activations go while the gradients come: they never stand together in full.
    assert 1.0 <= sum(ledger.values()) / counted.most < 1.5


@pytest.mark.parametrize("ours", [True, False])
def test_what_is_kept_is_counted_to_the_byte(ours, monkeypatch):
    model = tiny_model(**SIZES).bfloat16()
    sizes = dict(quantize=True, weight_bytes=2, lora_rank=4, targets=TARGETS)
    ledger = memory_ledger(model, **sizes)
    if ours:
        quantize_linears(model)
    else:
        quantize_model(model, torch.bfloat16, "cpu")
    packed = 0
    for module in model.modules():
        if hasattr(module, "packed"):  # but for the scales' mean, 4 bytes a layer
            packed += sum(t.nbytes for t in (module.packed, module.absmax, module.scale_codes))
        elif hasattr(module.__dict__.get("_parameters", {}).get("weight"), "quant_state"):
            state = module.weight.quant_state
            packed += module.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert ledger[FOUR_BITS] == packed
    plain = sum(p.nbytes for p in model.parameters() if p.dtype == torch.bfloat16)
    assert ledger["weights in 16 bits"] == plain
    add_lora(model, TARGETS, 4, 8.0)
    adapters = lora_parameters(model).values()
    assert ledger["adapters, float32"] == sum(p.nbytes for p in adapters)
    gradients = []
    for parameter in adapters:
        parameter.register_hook(lambda grad: gradients.append(grad.nbytes))
    engine, _ = train(model)
    assert ledger["gradients"] == sum(gradients) / 2  # two steps
    moments = [s[k] for s in engine.optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    assert ledger["optimizer"] == sum(t.nbytes for t in moments)


def test_eight_bit_adamw_keeps_two_bytes_a_weight_and_its_scales():
    model = add_lora(tiny_model(**SIZES), ["gate_proj", "up_proj"], 32, 64.0)
    make = quantized.choose_adamw("adamw8bit", "cpu")
    optimizer = make(model, 1e-4)
    for parameter in lora_parameters(model).values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = sum(
        t.nbytes
        for state in optimizer.state.values()
        for name, t in state.items()
        if name in ("state1", "state2", "absmax1", "absmax2")
    )
    weights = sum(p.numel() for p in lora_parameters(model).values())
    assert 2 <= kept / weights <= 2 + 2 * 4 / 256


# Mistral-7B

MISTRAL = MistralConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    sliding_window=None,
    rope_theta=1e6,
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def mistral():
    return empty_model(MISTRAL)


def test_mistral_s_shapes_are_there_without_its_weights(mistral):
    assert {p.device.type for p in mistral.parameters()} == {"meta"}
    assert sum(p.numel() for p in mistral.parameters()) == 7_241_732_096


def test_the_lecture_s_run_fits_a_16_gb_gpu_and_half_precision_does_not(mistral):
    lecture = dict(lora_rank=32, targets=TARGETS, optimizer_bytes=2)
    ledger = memory_ledger(mistral, quantize=True, **lecture)
    in_layers = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    assert ledger[FOUR_BITS] == in_layers * (4 + (8 + 32 / 256) / 64) / 8
    lm_head = 32 * (4096 + 32_000)
    assert ledger["adapters, float32"] == 4 * (75_497_472 + lm_head)
    assert sum(ledger.values()) < 14.5 * 2**30
    assert memory_ledger(mistral, **lecture)["weights in 16 bits"] == 2 * 7_241_732_096
    whole = memory_ledger(mistral, weight_bytes=4)
    assert whole["gradients"] + whole["optimizer"] == 12 * 7_241_732_096


def test_what_saves_memory_shows_in_its_own_row(mistral):
    usual = dict(quantize=True, lora_rank=32, targets=TARGETS)
    base = memory_ledger(mistral, **usual)
    for change, row in (
        ({"logits_chunk": None}, "logits and their gradient"),
        ({"checkpointing": False}, "activations"),
        ({"length": 1024}, "activations"),
        ({"lora_rank": 64}, "adapters, float32"),
    ):
        assert memory_ledger(mistral, **(usual | change))[row] > 1.2 * base[row]
    assert base["logits and their gradient"] == 128 * 32_000 * (2 + 3 * 4)


# Whether it fits


def test_a_run_that_cannot_fit_is_refused_with_its_largest_part():
    ledger = {"weights in 16 bits": 14 * 2**30, "activations": 2**30}
    check_fits(ledger, 15 * 2**30)
    check_fits(ledger, None)  # where nobody can tell, try
    words = (
        r"needs 15\.0 GiB and 8\.0 GiB are free; the largest part is weights in 16 bits, 14\.0 GiB"
    )
    with pytest.raises(MemoryError, match=words):
        check_fits(ledger, 8 * 2**30)


def test_the_table_has_a_row_a_kind_and_the_sum():
    text = ledger_text({"weights": 2**30, "gradients": 2**19}).splitlines()
    assert [line.split()[0] for line in text] == ["weights", "gradients", "all"]
    assert text[0].endswith("1,024.0 MiB")
    assert text[2].endswith("1,024.5 MiB = 1.00 GiB")


def test_memory_of_this_process_can_be_told():
    assert 0 < peak_bytes("cpu") < 2**40
    assert 0 < available_bytes("cpu") < 2**44


def test_a_configuration_that_leaves_sizes_unsaid_gets_a_ledger_too():
    config = GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=100, n_positions=32)
    model = empty_model(config)
    ledger = memory_ledger(model, weight_bytes=4)
    assert ledger["weights in 32 bits"] == 4 * sum(p.numel() for p in model.parameters())
    assert ledger["activations"] > 0


def test_the_readme_s_ledger_is_what_the_function_says(mistral):
    lecture = dict(lora_rank=32, targets=TARGETS, optimizer_bytes=2)
    ledger = memory_ledger(mistral, quantize=True, **lecture)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for size in [*ledger.values(), sum(ledger.values())]:
        assert f"| {size / 2**20:,.0f} |" in readme


def test_the_readme_tells_what_was_counted_at_full_size():
    root = Path(__file__).parents[2]
    rows = json.loads((root / "benchmarks" / "rehearse_7b.json").read_text())["rows"]
    readme = (root / "README.md").read_text(encoding="utf-8")
    for name in ("the lesson's step", "activations not checkpointed", "weights in 16 bits"):
        assert f"{rows[name]['peak_gib']:.2f}" in readme


def test_the_readme_s_numbers_of_a_7b_step_on_a_cpu_are_the_recorded_ones():
    root = Path(__file__).parents[2]
    found = json.loads((root / "benchmarks" / "mistral_7b_on_cpu.json").read_text())
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    assert found["counted"] == found["weights"] == 7_241_732_096
    assert (
        f"The ledger says {found['predicted_gib']:.2f} GiB, the process took at most "
        f"{found['peak_gib']:.2f} once the model was loaded, {found['before_loading_gib']:.2f} of "
        f"them the libraries'; a step on one pair takes {found['step_seconds']:.0f} s"
    ) in readme


GAPS = """
import sys
from pathlib import Path
import torch
from rlhf_minimal.memory import return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

if sys.argv[1] == "return":
    return_freed_memory()
for _ in range(3):
    torch.ones(31 * 2**18)  # the C library learns that blocks of 31 MiB come and go
blocks = [torch.ones(8 * 2**18) for _ in range(64)]
before = resident()
del blocks[::2]
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries need no advice")
def test_memory_that_is_freed_goes_back_to_the_system():
    returned = {}
    for wish in ("keep", "return"):
        command = [sys.executable, "-c", GAPS, wish]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        returned[wish] = float(done.stdout)
    assert returned["return"] == pytest.approx(256, abs=10)  # every other of 64 blocks of 8 MiB
    assert returned["keep"] < 128  # else nobody needs the function


def test_loading_in_4_bits_on_a_cpu_has_freed_memory_returned(tmp_path, monkeypatch):
    tiny_model(**WIDE).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(large_models, "return_freed_memory", lambda: asked.append(True))
    large_models.load_model(tmp_path, device="cpu")
    assert not asked  # it costs time
    large_models.load_model(tmp_path, device="cpu", quantize=True)
    assert asked


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_a_peak_can_be_forgotten():
    return_freed_memory()
    torch.ones(2**27)  # 512 MiB, and gone
    before = peak_bytes("cpu")
    forget_peak("cpu")
    assert peak_bytes("cpu") < before - 2**28
