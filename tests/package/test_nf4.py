"""What `nf4.py` promises: bitsandbytes' bits, from a few lines that can be read in class."""

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlhf_minimal.nf4 import (
    NF4Linear,
    NF4Tensor,
    QuantizedScales,
    bits_per_weight,
    dequantize_nf4,
    dequantize_scales,
    dynamic_codebook,
    nf4_codebook,
    quantize_linears,
    quantize_nf4,
    quantize_scales,
)

HALF = [torch.float16, torch.bfloat16]
SHAPES = [(3, 64), (5, 128), (33, 192), (128, 64), (7,), (129,), (1,), (4, 101), (9, 65)]


def gaussian(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (0.02 * torch.randn(*shape, generator=generator)).to(dtype)


def theirs(weight, block_size=64, double=False, kind="nf4"):
    """bitsandbytes' packed codes, its state, and the values it reads back."""
    packed, state = bnb.quantize_4bit(
        weight, blocksize=block_size, compress_statistics=double, quant_type=kind
    )
    return packed.view(-1), state, bnb.dequantize_4bit(packed, state)


# Levels


def test_the_levels_are_bitsandbytes_own_to_the_bit():
    assert torch.equal(nf4_codebook(), bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(dynamic_codebook(), bnb.create_dynamic_map())


def test_zero_and_both_ends_are_levels_and_neighbours_hold_like_shares_of_a_gaussian():
    levels = nf4_codebook()
    assert {-1.0, 0.0, 1.0} < set(levels.tolist())
    assert bool((levels[1:] > levels[:-1]).all())
    # In units of the outermost level's quantile the levels are quantiles at equal distances:
    # eight steps from the outermost probability down to 1/2, and seven up to it on the other side.
    shares = torch.special.ndtr(levels.double() * torch.special.ndtri(torch.tensor(0.9677083)))
    assert torch.allclose(shares[8:].diff(), torch.tensor((0.9677083 - 0.5) / 8).double())
    assert torch.allclose(shares[:7].diff(), torch.tensor((0.9677083 - 0.5) / 7).double())


# Codes and values


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_scales_and_values_are_bitsandbytes_own_to_the_bit(shape, dtype):
    weight = gaussian(*shape, dtype=dtype)
    packed, state, values = theirs(weight)
    ours = quantize_nf4(weight)
    assert torch.equal(ours.packed, packed)
    assert torch.equal(ours.scales, state.absmax)
    assert torch.equal(dequantize_nf4(ours).to(dtype), values)


@pytest.mark.parametrize("block_size", [128, 256, 512])
def test_other_block_sizes_agree_too(block_size):
    weight = gaussian(24, 512)
    packed, state, values = theirs(weight, block_size)
    ours = quantize_nf4(weight, block_size)
    assert torch.equal(ours.packed, packed)
    assert torch.equal(ours.scales, state.absmax)
    assert torch.equal(dequantize_nf4(ours), values)


def test_blocks_of_zeros_and_of_extreme_sizes_agree_and_stay_finite():
    weight = torch.zeros(6, 64)
    weight[1], weight[2] = 1e-30 * gaussian(64), 1e30 * gaussian(64)
    weight[3, 5] = -3.0  # one outlier: everything beside it becomes the level nearest to 0
    weight[4] = 1e-45  # the smallest float32 there is
    packed, _, values = theirs(weight)
    ours = quantize_nf4(weight)
    assert torch.equal(ours.packed, packed)
    assert torch.equal(dequantize_nf4(ours), values)
    assert torch.equal(dequantize_nf4(ours)[0], torch.zeros(64))
    assert torch.equal(dequantize_nf4(ours)[3], weight[3])


@settings(max_examples=40)
@given(size=st.integers(1, 300), block_size=st.integers(1, 70), seed=st.integers(0, 99))
def test_each_weight_gets_the_nearest_of_its_block_s_sixteen_values(size, block_size, seed):
    weight = gaussian(size, seed=seed)
    ours = quantize_nf4(weight, block_size)
    assert ours.packed.numel() == -(-size // 2)
    read = dequantize_nf4(ours)
    for start in range(0, size, block_size):
        block = weight[start : start + block_size]
        choices = nf4_codebook() * block.abs().max()
        nearest = (block[:, None] - choices).abs().amin(-1)
        found = (block - read[start : start + block_size]).abs()
        torch.testing.assert_close(found, nearest, rtol=0, atol=1e-8)  # an ulp of 0.08


def test_a_second_quantisation_changes_nothing():
    once = dequantize_nf4(quantize_nf4(gaussian(16, 128)))
    assert torch.equal(dequantize_nf4(quantize_nf4(once)), once)


def test_two_codes_a_byte_the_earlier_one_in_the_upper_half():
    levels = nf4_codebook()
    weight = torch.cat([levels, levels.flip(0)])
    ours = quantize_nf4(weight, block_size=32)
    codes = [code for byte in ours.packed.tolist() for code in (byte >> 4, byte & 15)]
    assert codes == [*range(16), *range(15, -1, -1)]


def test_nf4_errs_less_than_fp4_on_gaussian_weights():
    weight = gaussian(256, 256)
    errors = {}
    for kind in ("nf4", "fp4"):
        *_, values = theirs(weight, kind=kind)
        errors[kind] = (values - weight).abs()
    assert torch.equal(errors["nf4"], (dequantize_nf4(quantize_nf4(weight)) - weight).abs())
    difference = errors["fp4"] - errors["nf4"]
    standard_error = difference.std() / difference.numel() ** 0.5
    assert difference.mean() > 10 * standard_error


# Double quantisation


def test_values_from_bitsandbytes_doubly_quantised_scales_are_equal_to_the_bit():
    for seed, shape in enumerate([(64, 64), (300, 128), (1000, 64)]):  # 1000: no multiple of 256
        packed, state, values = theirs(gaussian(*shape, seed=seed), double=True)
        scales = QuantizedScales(state.absmax, state.state2.absmax, state.offset)
        ours = NF4Tensor(packed, scales, shape, 64)
        assert torch.equal(dequantize_nf4(ours), values)


def test_scales_written_differ_from_bitsandbytes_only_beside_a_midpoint():
    weight = gaussian(1024, 1024)
    packed, state, _ = theirs(weight, double=True)
    ours = quantize_nf4(weight, double=True)
    assert torch.equal(ours.packed, packed)
    assert ours.scales.mean == state.offset
    assert torch.equal(ours.scales.absmax, state.state2.absmax)
    differing = ours.scales.codes != state.absmax
    assert differing.float().mean() < 1 / 200
    scales = quantize_nf4(weight).scales
    shares = (scales - ours.scales.mean) / ours.scales.absmax.repeat_interleave(256)
    levels = dynamic_codebook()
    distance = (shares[:, None] - (levels[:-1] + levels[1:]) / 2).abs().amin(-1)
    # Its CPU code looks the level up in a table of 65,536 shares in [-1, 1], 1/32,768 apart.
    assert bool((distance[differing] <= 1 / 65_536 + 1e-7).all())
    steps = ours.scales.codes.int() - state.absmax.int()
    assert steps.abs().max() <= 1


def test_doubly_quantised_scales_are_nearer_than_half_a_step():
    scales = gaussian(5000).abs() + 0.03
    quantized = quantize_scales(scales)
    assert quantized.codes.dtype == torch.uint8
    error = (dequantize_scales(quantized) - scales).abs()
    widest = dynamic_codebook().diff().max() / 2
    assert bool((error <= widest * quantized.absmax.repeat_interleave(256)[:5000] + 1e-8).all())


def test_one_scale_and_equal_scales_come_back():
    for scales in (torch.tensor([0.3]), torch.full((300,), 0.3)):
        torch.testing.assert_close(dequantize_scales(quantize_scales(scales)), scales)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block_size", [64, 128])
def test_bits_per_weight_are_the_stored_bits(double, block_size):
    weight = gaussian(512, 512)
    ours = quantize_nf4(weight, block_size, double)
    scales = ours.scales if double else [ours.scales]
    bits = 8 * (ours.packed.nbytes + sum(t.nbytes for t in scales))
    mean = 32 if double else 0  # one for the whole tensor
    assert bits - mean == weight.numel() * bits_per_weight(block_size, double)


# What it refuses


@pytest.mark.parametrize(
    ("weight", "block_size", "error", "words"),
    [
        ([1.0], 64, TypeError, "not list"),
        (torch.ones(4, dtype=torch.int64), 64, TypeError, "not torch.int64"),
        (torch.ones(0), 64, ValueError, "size_of_weight is 0"),
        (torch.ones(4), 0, ValueError, "block_size is 0"),
        (torch.tensor([1.0, float("nan")]), 64, ValueError, r"weight\[1\] is nan"),
        (torch.tensor([float("inf")]), 64, ValueError, r"weight\[0\] is inf"),
    ],
)
def test_bad_weights_are_refused(weight, block_size, error, words):
    with pytest.raises(error, match=words):
        quantize_nf4(weight, block_size)


# Layers


def linear(width_in=128, width_out=96, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(width_in, width_out, bias=bias).to(dtype)


def unpacked(layer):
    """The plain layer that an NF4Linear stands for."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(layer.weight_as(layer.dtype))
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach())
    return plain


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_input_gradient_are_those_of_the_unpacked_layer(double, bias, dtype):
    layer = NF4Linear(linear(bias=bias, dtype=dtype), double=double)
    results = []
    for module in (layer, unpacked(layer)):
        x = gaussian(2, 5, 128).mul(50).to(dtype).requires_grad_()
        y = module(x)
        y.backward(gaussian(2, 5, 96, seed=1).to(dtype))
        results.append((y, x.grad))
    # bfloat16 rounds the product before the bias joins it: two roundings of 2^-9 instead of one.
    tolerance = dict(rtol=0, atol=1e-6 if dtype == torch.float32 else 2**-6)
    for ours, plain in zip(*results, strict=True):
        assert ours.dtype == plain.dtype == dtype
        torch.testing.assert_close(ours, plain, **tolerance)


def test_nothing_of_the_weight_is_kept_for_the_way_back():
    layer, kept = NF4Linear(linear(bias=False)), []
    x = gaussian(3, 128).requires_grad_()

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
        held = sum(t.numel() for t in kept)
        assert held == 0
        unpacked(layer)(x)
        assert sum(t.numel() for t in kept) >= layer.in_features * layer.out_features
    y.sum().backward()
    assert x.grad is not None


def test_nothing_of_a_layer_is_trained_and_its_state_has_four_bits_a_weight():
    layer = NF4Linear(linear())
    assert not [p for p in layer.parameters() if p.requires_grad]
    stored = sum(t.nbytes for name, t in layer.state_dict().items() if name != "bias")
    assert stored == 128 * 96 * 33 / 64 + 4 + 4  # 192 scales fill one of 256: 4 bytes, and a mean


def test_a_layer_s_state_loads_into_another():
    first, second = NF4Linear(linear()), NF4Linear(nn.Linear(128, 96))
    second.load_state_dict(first.state_dict())
    x = gaussian(3, 128)
    assert torch.equal(first(x), second(x))


def test_all_linear_layers_but_the_skipped_are_replaced():
    model = nn.Sequential()
    model.inner = nn.Sequential(linear(), nn.ReLU(), nn.LayerNorm(96))
    model.lm_head = linear()
    x = gaussian(3, 128)
    expected = unpacked(NF4Linear(model.inner[0]))(x)
    assert quantize_linears(model) is model
    assert isinstance(model.inner[0], NF4Linear)
    assert type(model.lm_head) is nn.Linear
    torch.testing.assert_close(model.inner[0](x), expected)
