"""What `lora.py` promises: a thin update beside frozen weights, off and on and merged at will."""

import pytest
import torch
from tiny_llama import WIDE, tiny_model
from torch import nn

from rlhf_minimal.lora import (
    LoRALinear,
    adapters_disabled,
    add_lora,
    linear_layers,
    lora_layers,
    lora_parameters,
    merge_lora,
    unmerge_lora,
)
from rlhf_minimal.nf4 import NF4Linear
from rlhf_minimal.quantized import to_nf4

TOKENS = torch.arange(2, 26).view(2, 12)
ULP = 2.0**-23


def make(kind, dtype=torch.float32, bias=True):
    """A base layer of 64 inputs and 128 outputs."""
    torch.manual_seed(0)
    plain = nn.Linear(64, 128, bias=bias).to(dtype)
    if kind == "plain":
        return plain
    return NF4Linear(plain) if kind == "nf4" else to_nf4(plain, dtype, "cpu")


def filled(model_or_layer, seed=1):
    """Adapters as they might be after some training."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model_or_layer.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model_or_layer


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


# One layer


@pytest.mark.parametrize("kind", ["plain", "nf4", "bitsandbytes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_starts_as_its_base_and_only_the_adapter_gets_a_gradient(kind, dtype):
    base = make(kind, dtype)
    x = torch.linspace(-1, 1, 3 * 64).view(3, 64).to(dtype)
    layer = LoRALinear(base, rank=4, alpha=8.0)
    assert torch.equal(layer(x), base(x))
    layer(x).float().square().sum().backward()
    trained = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    assert set(trained) == {"lora_a", "lora_b"}
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert trained["lora_b"].grad.abs().sum() > 0
    assert all(p.grad is None for name, p in layer.named_parameters() if name not in trained)
    assert layer(x).dtype == dtype


@pytest.mark.parametrize("kind", ["plain", "nf4", "bitsandbytes"])
def test_the_update_is_b_times_a_times_alpha_over_rank(kind):
    layer = filled(LoRALinear(make(kind), rank=4, alpha=6.0))
    x = torch.linspace(-1, 1, 3 * 64).view(3, 64)
    update = 6.0 / 4 * (layer.lora_b @ layer.lora_a)
    torch.testing.assert_close(layer(x), layer.base(x) + x @ update.T)


def test_an_update_by_hand():
    layer = LoRALinear(nn.Linear(2, 1, bias=False), rank=1, alpha=3.0)
    layer.base.weight.data = torch.tensor([[1.0, 0.0]])
    layer.lora_a.data, layer.lora_b.data = torch.tensor([[0.0, 2.0]]), torch.tensor([[5.0]])
    assert layer(torch.tensor([[7.0, 10.0]])).item() == 7 + 3 * 5 * 2 * 10


def test_dropout_is_on_the_update_s_input_alone_and_only_while_training():
    layer = filled(LoRALinear(make("plain"), rank=4, alpha=8.0, dropout=0.5))
    x, draws = torch.ones(1, 64), []
    for _ in range(2000):
        draws.append(layer.train()(x))
    draws = torch.cat(draws)
    expected = layer.eval()(x)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected[0]).abs() < 5 * error).all()  # 128 means
    assert torch.equal(layer(x), expected)
    layer.train().enabled = False
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"base": nn.ReLU()}, TypeError, "must be a linear layer, not ReLU"),
        ({"base": nn.Embedding(3, 4)}, TypeError, "not Embedding"),
        ({"rank": 0}, ValueError, "rank is 0"),
        ({"rank": 65}, ValueError, "rank is 65"),
        ({"alpha": 0.0}, ValueError, "alpha is 0"),
        ({"dropout": 1.0}, ValueError, r"dropout is 1\.0"),
    ],
)
def test_what_cannot_be_is_refused(changes, error, words):
    arguments = {"base": nn.Linear(64, 128), "rank": 4, "alpha": 8.0, "dropout": 0.0} | changes
    with pytest.raises(error, match=words):
        LoRALinear(**arguments)


# A model


def adapted(targets=("q_proj", "down_proj"), dtype=torch.float32, **sizes):
    return filled(add_lora(tiny_model(**sizes).to(dtype), list(targets), 4, 8.0))


def test_only_adapters_of_the_targets_are_trained():
    model = add_lora(tiny_model(), ["q_proj", "lm_head"], 4, 8.0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(lora_parameters(model))
    layers = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in trained}
    assert layers == {f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)} | {"lm_head"}
    assert torch.equal(logits(model), logits(tiny_model()))


def test_the_same_seed_gives_the_same_adapters_and_leaves_the_generator():
    models = [add_lora(nn.Sequential(nn.Linear(9, 9)), ["0"], 2, 1.0, seed=s) for s in (3, 3, 4)]
    first, second, other = (model[0].lora_a for model in models)
    assert torch.equal(first, second) and not torch.equal(first, other)
    model = tiny_model()
    state = torch.get_rng_state()
    add_lora(model, ["q_proj"], 2, 1.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_missing_target_is_answered_with_those_that_exist():
    words = r"no layer is called query, wv; there are \['down_proj', 'gate_proj', 'k_proj', 'lm_"
    with pytest.raises(ValueError, match=words):
        add_lora(tiny_model(), ["query", "q_proj", "wv"], 2, 4.0)
    with pytest.raises(ValueError, match="no layer is called"):
        add_lora(tiny_model(), [], 2, 4.0)
    assert len(lora_layers(add_lora(tiny_model(), "q_proj", 2, 4.0))) == 2  # one name, not letters


def test_a_second_adapter_on_a_layer_is_refused_and_a_first_beside_it_is_not():
    model = adapted(["q_proj"])
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj has an adapter already"):
        add_lora(model, ["q_proj"], 2, 4.0)
    assert sorted({name.rpartition(".")[2] for name in linear_layers(model)}) == [
        *("down_proj", "gate_proj", "k_proj", "lm_head", "o_proj", "q_proj", "up_proj", "v_proj")
    ]


def test_without_adapters_there_is_nothing_to_list_disable_or_merge():
    for function in (lora_layers, lora_parameters, merge_lora):
        with pytest.raises(ValueError, match="no adapters"):
            function(tiny_model())
    with pytest.raises(ValueError, match="no adapters"), adapters_disabled(tiny_model()):
        pass
    with pytest.raises(ValueError, match="no merged layers"):
        unmerge_lora(adapted())


# Off and on


def test_disabled_it_is_the_frozen_model_to_the_bit():
    model = adapted()
    assert not torch.allclose(logits(model), logits(tiny_model()))
    with adapters_disabled(model) as inner:
        assert inner is model
        assert torch.equal(logits(model), logits(tiny_model()))
    assert not torch.allclose(logits(model), logits(tiny_model()))


def test_whatever_happens_inside_the_adapters_are_afterwards_as_they_were():
    model = adapted()
    first, *others = lora_layers(model).values()
    first.enabled = False
    with pytest.raises(RuntimeError, match="out of memory"), adapters_disabled(model):
        assert not any(layer.enabled for layer in lora_layers(model).values())
        raise RuntimeError("out of memory")
    assert first.enabled is False
    assert all(layer.enabled for layer in others)


# Merged and back


@pytest.mark.parametrize("kind", ["plain", "nf4", "bitsandbytes"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_merged_layer_computes_the_same(kind, bias):
    layer = filled(LoRALinear(make(kind, bias=bias), rank=4, alpha=8.0))
    x = torch.linspace(-1, 1, 3 * 64).view(3, 64)
    merged = layer.merged_linear()
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged(x), layer(x))


def test_a_merged_half_precision_layer_stays_in_it():
    layer = filled(LoRALinear(make("plain", torch.bfloat16), rank=4, alpha=8.0))
    merged = layer.merged_linear()
    update = 2 * layer.lora_b @ layer.lora_a
    assert merged.weight.dtype == merged.bias.dtype == torch.bfloat16
    assert torch.equal(merged.weight, (layer.base.weight.float() + update).bfloat16())


def test_merging_keeps_the_answers_and_unmerging_brings_the_very_model_back():
    model = adapted()
    before, names = logits(model), list(model.state_dict())
    layers = lora_layers(model)
    assert merge_lora(model) is model
    # Sums of 32 products in another order, two layers deep.
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == list(tiny_model().state_dict())
    with pytest.raises(ValueError, match="no adapters"):
        lora_layers(model)
    assert unmerge_lora(model) is model
    assert torch.equal(logits(model), before)
    assert list(model.state_dict()) == names
    again = lora_layers(model)
    assert all(again[name] is layer for name, layer in layers.items())


def test_a_tied_output_layer_is_adapted_alone_and_its_embedding_stays():
    model, plain = adapted(["lm_head"]), tiny_model()
    assert model.get_output_embeddings() is model.lm_head
    embedding = model.get_input_embeddings().weight
    assert model.lm_head.base.weight is embedding  # still one tensor in memory
    assert torch.equal(embedding, plain.get_input_embeddings().weight)
    before = logits(model)
    merge_lora(model)
    assert model.config.tie_word_embeddings is False
    assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    assert not torch.equal(model.lm_head.weight, embedding)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    unmerge_lora(model)
    assert model.config.tie_word_embeddings is True
    assert torch.equal(logits(model), before)


def test_an_untied_output_layer_changes_no_configuration():
    model = merge_lora(adapted(["lm_head"], tie_word_embeddings=False))
    assert model.config.tie_word_embeddings is False
    assert unmerge_lora(model).config.tie_word_embeddings is False
    model = merge_lora(adapted(["q_proj"]))
    assert model.config.tie_word_embeddings is True


def test_a_merged_model_saves_and_reloads_with_its_answers(tmp_path):
    for number, targets in enumerate((["q_proj"], ["q_proj", "lm_head"])):
        model = merge_lora(adapted(targets, **WIDE))
        model.save_pretrained(tmp_path / str(number))
        again = type(model).from_pretrained(tmp_path / str(number))
        assert torch.equal(logits(again), logits(model))
