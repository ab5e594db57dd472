"""What `quantized.py` promises: 4-bit layers of either make agree, or are refused."""

import importlib.util

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from tiny_llama import WIDE, tiny_model, tiny_tokenizer
from torch import nn
from transformers import BertConfig, BertLMHeadModel

from rlhf_minimal.large_models import load_model
from rlhf_minimal.lora import add_lora
from rlhf_minimal.memory import memory_ledger
from rlhf_minimal.nf4 import NF4Linear, dequantize_nf4, quantize_linears, quantize_nf4
from rlhf_minimal.quantized import (
    check_widths,
    choose_adamw,
    compute_dtype,
    count_weights,
    kept_whole,
    prepare_for_training,
    quantize_model,
    to_nf4,
)
from rlhf_minimal.training import adamw

TOKENS = torch.arange(2, 26).view(2, 12)


@pytest.fixture
def without_bitsandbytes(monkeypatch):
    found = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)


def linear(width_in, width_out, bias=True):
    torch.manual_seed(0)
    return nn.Linear(width_in, width_out, bias=bias)


# Layers


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("width_in", "width_out"), [(64, 64), (128, 352), (448, 96)])
def test_both_makes_of_layer_give_the_same_output_and_input_gradient(width_in, width_out, bias):
    layer, results = linear(width_in, width_out, bias), []
    theirs = to_nf4(layer, torch.float32, "cpu")
    ours = NF4Linear(layer)
    assert isinstance(theirs, Linear4bit)
    state = theirs.weight.quant_state
    assert torch.equal(theirs.weight.view(-1), ours.packed)
    for module in (ours, theirs):
        x = torch.linspace(-1, 1, 3 * width_in).view(3, width_in).requires_grad_()
        module(x).square().sum().backward()
        results.append((module(x), x.grad))
    # Scales that differ by one level in 256 where they lie beside a midpoint; else float32 alone.
    differing = (ours.scale_codes != state.absmax).any().item()
    tolerance = 5e-3 if differing else 1e-5
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(
            mine, other, rtol=tolerance, atol=tolerance * float(other.abs().max())
        )


@pytest.mark.parametrize("shape", [(96, 64), (352, 128), (64, 448)])
def test_allowed_widths_are_unpacked_by_bitsandbytes_as_by_us(shape):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = linear(*shape[::-1]).weight.detach()
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=False)
    assert torch.equal(dequantize_4bit(packed, state), dequantize_nf4(quantize_nf4(weight)))


def test_a_width_that_is_no_multiple_of_64_is_refused_on_a_cpu_by_name():
    model = tiny_model(hidden_size=128, intermediate_size=352)
    words = r"layers\.0\.mlp\.down_proj has 352 inputs, no multiple of 64"
    with pytest.raises(ValueError, match=words):
        check_widths(model, "cpu")
    with pytest.raises(ValueError, match=words):
        quantize_model(model, torch.float32, "cpu")
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear  # nothing was replaced
    check_widths(model, "cuda")  # its kernels have no such limit
    check_widths(tiny_model(**WIDE), "cpu")
    odd = nn.Module()
    odd.last = nn.Linear(100, 10)
    odd.get_output_embeddings = lambda: odd.last  # stays as it is, whatever its width
    check_widths(odd, "cpu")


def test_our_own_layers_take_any_width(without_bitsandbytes):
    model = quantize_model(tiny_model(), torch.float32, "cpu")
    assert isinstance(model.model.layers[0].mlp.down_proj, NF4Linear)
    assert model(TOKENS).logits.isfinite().all()


def test_4_bits_on_a_gpu_without_bitsandbytes_name_the_package(without_bitsandbytes):
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        to_nf4(linear(64, 64), torch.float16, "cuda")


# Whole models


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    tiny_model(**WIDE).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_model_loads_in_4_bits_but_for_its_output_layer(saved):
    loaded, _ = load_model(saved, device="cpu", quantize=True)
    made = quantize_model(tiny_model(**WIDE), torch.float32, "cpu")
    kinds = {name: type(m) for name, m in loaded.named_modules() if hasattr(m, "in_features")}
    assert kinds.pop("lm_head") is nn.Linear
    assert set(kinds.values()) == {Linear4bit}
    assert loaded.model.layers[0].mlp.up_proj.weight.quant_state.quant_type == "nf4"
    assert loaded.model.layers[0].mlp.up_proj.weight.quant_state.nested  # scales in 8 bits too
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, made(TOKENS).logits)
        ours = quantize_linears(tiny_model(**WIDE))(TOKENS).logits
        plain = tiny_model(**WIDE)(TOKENS).logits
    # The two makes differ by a scale's level here and there; both differ more from the original.
    assert (ours - made(TOKENS).logits).abs().max() < 0.1 * (ours - plain).abs().max()


def test_weights_are_counted_as_weights_and_not_as_bytes():
    expected = sum(p.numel() for p in tiny_model(**WIDE).parameters())
    assert count_weights(tiny_model(**WIDE)) == expected
    assert count_weights(quantize_linears(tiny_model(**WIDE))) == expected
    assert count_weights(quantize_model(tiny_model(**WIDE), torch.float32, "cpu")) == expected


@pytest.mark.parametrize("from_disk", [False, True])
def test_an_output_layer_by_any_name_stays_whole(from_disk, tmp_path):
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
    model = BertLMHeadModel(BertConfig(vocab_size=258, is_decoder=True, **sizes))
    output = "cls.predictions.decoder"
    assert kept_whole(model) == [output]
    ledger = memory_ledger(model, quantize=True, weight_bytes=4)
    if from_disk:
        model.save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        model, _ = load_model(tmp_path, device="cpu", quantize=True)
    else:
        quantize_model(model, torch.float32, "cpu")
    kinds = {name: type(m) for name, m in model.named_modules() if hasattr(m, "in_features")}
    assert kinds.pop(output) is nn.Linear
    assert set(kinds.values()) == {Linear4bit}
    whole = sum(p.nbytes for p in model.parameters() if p.is_floating_point())
    assert ledger["weights in 32 bits"] == whole


def test_a_4_bit_checkpoint_loads_as_it_was_saved(saved, tmp_path):
    loaded, tokenizer = load_model(saved, device="cpu", quantize=True)
    loaded.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_model(tmp_path, device="cpu", quantize=True)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, again(TOKENS).logits)


def test_a_width_that_is_refused_is_refused_before_the_weights_are_read(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    read = []
    monkeypatch.setattr(
        "rlhf_minimal.large_models.AutoModelForCausalLM.from_pretrained",
        lambda *a, **k: read.append(a),
    )
    with pytest.raises(ValueError, match="q_proj has 32 inputs"):
        load_model(tmp_path, device="cpu", quantize=True)
    assert read == []


def test_gradients_do_not_change_a_4_bit_model_s_precision(saved, monkeypatch):
    # as on a CPU with bfloat16 units, where bitsandbytes repacks weights that need no gradient
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model, _ = load_model(saved, device="cpu", quantize=True)
    with torch.no_grad():
        without = model(TOKENS).logits
    add_lora(model, ["q_proj"], 2, 4.0)
    assert torch.equal(model(TOKENS).logits, without)
    flags = [getattr(m, "support_avx512bf16_for_cpu", False) for m in model.modules()]
    assert not any(flags)


# Ready to train


def with_dropout(dropout=0.5):
    model = tiny_model(attention_dropout=0.5)
    return add_lora(model, ["q_proj", "down_proj"], 2, 4.0, dropout=dropout)


def gradients(model, checkpointing):
    prepare_for_training(model, checkpointing)
    for layer in model.modules():
        if hasattr(layer, "lora_b"):
            nn.init.constant_(layer.lora_b, 0.1)
    torch.manual_seed(3)
    model(TOKENS, labels=TOKENS).loss.backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_with_checkpointing_are_those_without(dropout):
    plain = gradients(with_dropout(dropout), checkpointing=False)
    again = gradients(with_dropout(dropout), checkpointing=True)
    assert all(map(torch.equal, plain, again))
    assert all(grad.abs().sum() > 0 for grad in plain)


def test_checkpointing_does_happen():
    model, calls = prepare_for_training(with_dropout()), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model(TOKENS, labels=TOKENS).loss.backward()
    assert len(calls) == 2  # there, and again on the way back


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_adapters_dropout_is_on_and_the_model_s_own_is_off(checkpointing):
    model = prepare_for_training(with_dropout(), checkpointing)
    with torch.no_grad():  # adapters that are zero say nothing: only the model's dropout would show
        assert torch.equal(model(TOKENS).logits, model(TOKENS).logits)
        for layer in model.modules():
            if hasattr(layer, "lora_b"):
                nn.init.constant_(layer.lora_b, 0.1)
        assert not torch.equal(model(TOKENS).logits, model(TOKENS).logits)
        model.eval()
        assert torch.equal(model(TOKENS).logits, model(TOKENS).logits)
    assert model.config.use_cache is False


# Types and optimizers


def fake_gpu(monkeypatch, bfloat16):
    native = lambda including_emulation=True: bfloat16 or including_emulation  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", native)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")


def test_a_gpu_without_bfloat16_computes_in_float16_and_refuses_the_other(monkeypatch):
    fake_gpu(monkeypatch, bfloat16=False)
    assert compute_dtype("cuda") == torch.float16
    assert compute_dtype("cuda", "float32") == torch.float32
    with pytest.raises(ValueError, match=r"Tesla T4 has no bfloat16 units; ask for float16"):
        compute_dtype("cuda", "bfloat16")


def test_a_gpu_with_bfloat16_uses_it_and_a_cpu_float32(monkeypatch):
    fake_gpu(monkeypatch, bfloat16=True)
    assert compute_dtype("cuda") == compute_dtype("cuda:1", "bfloat16") == torch.bfloat16
    assert compute_dtype("cuda", "float16") == torch.float16
    assert compute_dtype("cpu") == compute_dtype("cpu", "bfloat16") == torch.float32


def test_eight_bits_are_for_gpus_unless_asked_for():
    assert choose_adamw(None, "cpu") is adamw
    assert choose_adamw("adamw", "cuda") is adamw
    model = add_lora(tiny_model(), ["q_proj"], 2, 4.0)
    kinds = {}
    for asked, device in ((None, "cuda"), ("adamw8bit", "cuda"), ("adamw8bit", "cpu")):
        kinds[asked, device] = type(choose_adamw(asked, device)(model, 1e-3)).__name__
    assert set(kinds.values()) == {"PagedAdamW8bit", "AdamW8bit"}
    assert kinds["adamw8bit", "cpu"] == "AdamW8bit"


def test_eight_bits_without_bitsandbytes_name_the_package(without_bitsandbytes):
    assert choose_adamw(None, "cuda") is adamw
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        choose_adamw("adamw8bit", "cuda")
