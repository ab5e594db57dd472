"""Lesson 08: a 7B model on one GPU: its memory, four bits a weight, LoRA, hh-rlhf's transcripts."""

import re
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from autograder import exercise

NF4 = "rlhf_minimal.nf4"

# -- 08.1 ---------------------------------------------------------------------------------------

memory_ledger = exercise(
    "memory_ledger", number="08.1", points=2, takes_away=["rlhf_minimal.memory:memory_ledger"],
)


@memory_ledger.reference
def bytes_by_kind(weights, bits, adapted, rank, depth, width, tokens, vocabulary, chunk):
    trained = rank * sum(n_out + n_in for n_out, n_in in adapted)
    return {
        "weights": weights * bits / 8,
        "adapters": 4 * trained,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": 2 * depth * tokens * width,
        "logits": 4 * min(chunk, tokens) * vocabulary,
    }


@memory_ledger.cases(visible=6, fresh=12)
def shapes_of_a_model(g):
    width, depth, vocabulary = 8 * g.size(1, 9), g.size(2, 9), 100 * g.size(3, 9)
    shapes = [(width, width), (width // 4, width), (3 * width, width), (width, 3 * width)]
    adapted = g.sample(shapes, g.integer(1, 4))
    tokens = 10 * g.integer(3, 9)
    return dict(
        # 16 divides the weights, so that bytes are whole and `//` is as right as `/`
        weights=16_000 * g.integer(2, 9), bits=g.choice([4, 4.5, 8, 16]), adapted=adapted,
        rank=g.choice([2, 4, 8]), depth=depth, width=width, tokens=tokens, vocabulary=vocabulary,
        chunk=g.choice([tokens // 3, tokens // 2, tokens + 7, tokens + 11]),
    )


@memory_ledger.probe
def ledger(answer, case):
    found = answer.memory_ledger(**case)
    return dict(ledger={str(kind): float(size) for kind, size in dict(found).items()})


def _ledger(change):
    """A wrong ledger: the right one with one entry changed by what ``change`` says."""

    def wrong(weights, bits, adapted, rank, depth, width, tokens, vocabulary, chunk):
        case = dict(weights=weights, bits=bits, adapted=adapted, rank=rank, depth=depth,
                    width=width, tokens=tokens, vocabulary=vocabulary, chunk=chunk)
        return bytes_by_kind(**case) | change(case, bytes_by_kind(**case))

    return wrong


@memory_ledger.mistake(
    "The weights are counted in bits, not bytes: eight bits make a byte."
)
def bits_for_bytes(**case):
    return _ledger(lambda c, right: dict(weights=c["weights"] * c["bits"]))(**case)


@memory_ledger.mistake(
    "These are GiB. Bytes are asked: divide when you print."
)
def in_gib(**case):
    return {kind: size / 2**30 for kind, size in bytes_by_kind(**case).items()}


@memory_ledger.mistake(
    "AdamW keeps *two* running means for each trained number, of the gradient and of its square:"
    " 8 bytes, not 4."
)
def one_moment(**case):
    return _ledger(lambda c, right: dict(optimizer=right["optimizer"] / 2))(**case)


@memory_ledger.mistake(
    "Gradients are counted for all weights. The frozen ones get none: that is the saving of LoRA."
)
def gradients_for_all(**case):
    return _ledger(lambda c, right: dict(gradients=4 * c["weights"]))(**case)


@memory_ledger.mistake(
    "Gradients and optimizer are counted for all weights. The frozen ones need neither: that is"
    " the saving of LoRA."
)
def everything_trained(**case):
    return _ledger(
        lambda c, right: dict(gradients=4 * c["weights"], optimizer=8 * c["weights"])
    )(**case)


@memory_ledger.mistake(
    "An adapter's size is taken as rank · out · in. It is two thin matrices, rank · in and"
    " out · rank: rank · (out + in) numbers."
)
def product_of_widths(**case):
    def change(c, right):
        trained = c["rank"] * sum(o * i for o, i in c["adapted"])
        return dict(adapters=4 * trained, gradients=4 * trained, optimizer=8 * trained)

    return _ledger(change)(**case)


@memory_ledger.mistake(
    "An adapter is counted as large as its layer, out · in. It is two thin matrices: rank · in and"
    " out · rank numbers."
)
def whole_layer(**case):
    def change(c, right):
        trained = sum(o * i for o, i in c["adapted"])
        return dict(adapters=4 * trained, gradients=4 * trained, optimizer=8 * trained)

    return _ledger(change)(**case)


@memory_ledger.mistake(
    "AdamW's entry holds the trained numbers or their gradients too. Those have entries of their"
    " own: here count its two means alone, 8 bytes for each trained number."
)
def gradients_in_the_optimizer(**case):
    return _ledger(lambda c, right: dict(optimizer=1.5 * right["optimizer"]))(**case)


@memory_ledger.mistake(
    "Only one of the adapter's two matrices is counted: A has rank · in numbers, and B has"
    " out · rank."
)
def one_matrix(**case):
    def change(c, right):
        trained = c["rank"] * sum(i for _, i in c["adapted"])
        return dict(adapters=4 * trained, gradients=4 * trained, optimizer=8 * trained)

    return _ledger(change)(**case)


@memory_ledger.mistake(
    "Adapters and their gradients are counted in 16 bits. They are float32 (4 bytes): steps of"
    " 1e-5 would vanish in half precision."
)
def adapters_in_half(**case):
    return _ledger(
        lambda c, right: dict(adapters=right["adapters"] / 2, gradients=right["gradients"] / 2)
    )(**case)


@memory_ledger.mistake(
    "The activations of one layer only: checkpointing keeps the input of *every* layer."
)
def one_layer(**case):
    return _ledger(
        lambda c, right: dict(activations=right["activations"] / c["depth"])
    )(**case)


@memory_ledger.mistake(
    "Activations are counted with 4 bytes. They are computed in 16 bits: 2 bytes each."
)
def activations_in_float32(**case):
    return _ledger(lambda c, right: dict(activations=2 * right["activations"]))(**case)


@memory_ledger.mistake(
    "All tokens' logits are counted. They are made in pieces: of `chunk` tokens at a time, or of"
    " all where there are fewer."
)
def all_logits(**case):
    return _ledger(lambda c, right: dict(logits=4 * c["tokens"] * c["vocabulary"]))(**case)


@memory_ledger.mistake(
    "A chunk is counted whole even where the batch has fewer tokens: take the smaller of the two."
)
def chunk_always(**case):
    return _ledger(lambda c, right: dict(logits=4 * c["chunk"] * c["vocabulary"]))(**case)


@memory_ledger.mistake(
    "Logits are counted with 2 bytes. The softmax over a large vocabulary is taken in float32: 4."
)
def logits_in_half(**case):
    return _ledger(lambda c, right: dict(logits=right["logits"] / 2))(**case)


# -- 08.2 ---------------------------------------------------------------------------------------

nf4_codebook = exercise(
    "nf4_codebook", number="08.2", points=2, any_dtype=True,
    takes_away=[f"{NF4}:nf4_codebook", f"{NF4}:quantize_nf4", f"{NF4}:dequantize_nf4"],
    tolerance=(3e-6, "quantiles in float32: 16 ulps of the outermost, 1"),
)


@nf4_codebook.reference
def gaussian_levels(bits, outermost):
    half = 2 ** (bits - 1)
    grid = torch.linspace(outermost, 0.5, half + 1, dtype=torch.float64)[:-1]
    positive = torch.special.ndtri(grid)
    grid = torch.linspace(outermost, 0.5, half, dtype=torch.float64)[:-1]
    negative = -torch.special.ndtri(grid)
    levels = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive])
    return (levels / levels.max()).sort().values.float()


nf4_codebook.equivalent("sort().values.float()", "any floating type will do")


@nf4_codebook.cases(visible=4, fresh=10)
def bits_and_tail(g):
    bits = g.choice([3, 4, 5]) if g.scale > 0.3 else 3
    return dict(bits=bits, outermost=round(g.uniform(0.91, 0.99), 4))


def _codebook(positive, negative, zero=True):
    parts = [positive, -negative] + ([positive.new_zeros(1)] if zero else [])
    levels = torch.cat(parts)
    return (levels / levels.abs().max()).sort().values.float()


def _quantiles(outermost, n):
    return torch.special.ndtri(torch.linspace(outermost, 0.5, n, dtype=torch.float64))


@nf4_codebook.mistake(
    "The levels are evenly spaced: that is a 4-bit integer. A Gaussian's weights crowd around 0,"
    " and so must the levels."
)
def evenly_spaced(bits, outermost):
    half = 2 ** (bits - 1)
    up = torch.linspace(1, 0, half + 1, dtype=torch.float64)[:-1]
    return _codebook(up, torch.linspace(1, 0, half, dtype=torch.float64)[:-1])


@nf4_codebook.mistake(
    "There is no zero among the levels: equally many evenly spaced quantiles on both sides, and a"
    " weight of 0 (padding, a pruned weight) cannot be kept."
)
def without_zero(bits, outermost):
    even = torch.linspace(1 - outermost, outermost, 2**bits, dtype=torch.float64)
    levels = torch.special.ndtri(even)
    return (levels / levels.max()).float()


@nf4_codebook.mistake(
    "Not scaled: the largest level must be 1, because a block's largest weight is divided down"
    " to 1."
)
def not_scaled(bits, outermost):
    half = 2 ** (bits - 1)
    positive, negative = _quantiles(outermost, half + 1)[:-1], _quantiles(outermost, half)[:-1]
    return torch.cat([positive, -negative, positive.new_zeros(1)]).sort().values.float()


@nf4_codebook.mistake(
    "The sides are exchanged: one more *positive* level than negative ones is asked, as everybody's"
    " 4-bit files have it."
)
def more_negative(bits, outermost):
    half = 2 ** (bits - 1)
    return _codebook(_quantiles(outermost, half)[:-1], _quantiles(outermost, half + 1)[:-1])


@nf4_codebook.mistake(
    "Each side has one probability too many before the ½ is dropped; or the ½ was not dropped, and"
    " zero stands among the levels more than once. 2^bits levels, all different, are asked."
)
def zero_thrice(bits, outermost):
    half = 2 ** (bits - 1)
    return _codebook(_quantiles(outermost, half + 1), _quantiles(outermost, half))


@nf4_codebook.mistake(
    "The levels are right and in another order. A code's number says how large its weight is, so"
    " they go from −1 to 1."
)
def not_sorted(bits, outermost):
    return gaussian_levels(bits, outermost).flip(0)


@nf4_codebook.mistake(
    "Each side is spaced by the same step of probability, 0.5/2^(bits−1), not from `outermost` to"
    " ½. The outermost quantiles are where `outermost` says."
)
def outermost_ignored(bits, outermost):
    half = 2 ** (bits - 1)
    reach = 1 - 0.5 / half
    return _codebook(_quantiles(reach, half + 1)[:-1], _quantiles(reach, half)[:-1])


@nf4_codebook.mistake(
    "These are probabilities, stretched to [−1, 1]. The levels are the *quantiles* that belong to"
    " them: the inverse of the normal distribution function, `torch.special.ndtri`."
)
def probabilities(bits, outermost):
    half = 2 ** (bits - 1)
    p = torch.linspace(outermost, 0.5, half + 1, dtype=torch.float64)[:-1]
    q = torch.linspace(outermost, 0.5, half, dtype=torch.float64)[:-1]
    return torch.cat([p, 1 - q, p.new_zeros(1)]).sort().values.float()


@nf4_codebook.mistake(
    "The density is taken where its inverse distribution function is meant: levels are the points"
    " below which given shares of a Gaussian lie, `torch.special.ndtri`."
)
def distribution_function(bits, outermost):
    half = 2 ** (bits - 1)
    up = torch.special.ndtr(torch.linspace(outermost, 0.5, half + 1, dtype=torch.float64)[:-1])
    down = torch.special.ndtr(torch.linspace(outermost, 0.5, half, dtype=torch.float64)[:-1])
    return _codebook(up, down)


# -- 08.3 ---------------------------------------------------------------------------------------

quantize_nf4 = exercise(
    "quantize_nf4", number="08.3", points=3,
    takes_away=[f"{NF4}:quantize_nf4", f"{NF4}:NF4Linear"],
)


@quantize_nf4.reference
def blocks_to_codes(weight, levels, block_size):
    rows = weight.reshape(-1, block_size)
    scales = rows.abs().amax(-1)
    shares = rows / scales.clamp(min=1e-30)[:, None]
    codes = torch.bucketize(shares, (levels[:-1] + levels[1:]) / 2).flatten().to(torch.uint8)
    return codes[::2] * 16 + codes[1::2], scales


quantize_nf4.equivalent("clamp", "any small number in place of 0 will do; a block of zeros stays 0")
quantize_nf4.equivalent("`-1` becomes `1`", "the last of two dimensions is number 1")
quantize_nf4.equivalent("1e-30", "any small number in place of 0 will do; a block of zeros stays 0")


@quantize_nf4.cases(visible=6, fresh=12)
def weights_and_levels(g):
    block = g.choice([4, 8])
    weight = g.normal(g.choice([2, 4]), block * g.size(1, 4), std=g.choice([0.02, 1.0, 3.0]))
    weight = torch.where(weight == 0, 0.5, weight)
    if g.bool(0.4):
        weight[0, :block] = 0.0                    # a whole block of zeros
    if g.bool(0.7):
        weight[-1, -1] = -12.5                     # an outlier, and a negative one
    return dict(weight=weight, levels=_levels(g), block_size=block)


def _levels(g):
    """NF4's sixteen, or sixteen others that are as uneven."""
    if g.bool(0.5):
        return (gaussian_levels(4, 0.9677083) * 1e3).round() / 1e3
    steps = g.uniform(0.4, 1.6, 14).cumsum(0)
    middle = 2 * steps / (steps[-1] + 1) - 1
    return torch.cat([torch.tensor([-1.0]), middle, torch.tensor([1.0])])


@quantize_nf4.probe
def packed_and_scales(answer, case):
    packed, scales = answer.quantize_nf4(**case)
    return dict(packed=packed.long(), bytes_each=packed.element_size(), scales=scales,
                inputs_after=case)


def _pack(codes):
    codes = codes.flatten().to(torch.uint8)
    return codes[::2] * 16 + codes[1::2]


def _numbered(shares, levels):
    return torch.bucketize(shares, (levels[:-1] + levels[1:]) / 2)


def _safe(scales):
    return torch.where(scales == 0, torch.ones_like(scales), scales)


@quantize_nf4.mistake(
    "One scale for the whole weight: a single outlier then makes every other weight small, and most"
    " of them round to 0. Each block has its own."
)
def one_scale(weight, levels, block_size):
    rows = weight.reshape(-1, block_size)
    scales = rows.abs().max().expand(len(rows)).clone()
    return _pack(_numbered(rows / _safe(scales)[:, None], levels)), scales


@quantize_nf4.mistake(
    "The scale is the block's largest value, sign and all. Where the largest *magnitude* is"
    " negative, shares fall outside [−1, 1]: take the absolute values first."
)
def largest_value(weight, levels, block_size):
    rows = weight.reshape(-1, block_size)
    scales = rows.amax(-1)
    return _pack(_numbered(rows / _safe(scales)[:, None], levels)), scales


@quantize_nf4.mistake(
    "Rounded down (or up) to a level, not to the nearest: every weight is off in the same"
    " direction. Compare with the *midpoints* between levels."
)
def rounded_down(weight, levels, block_size):
    rows = weight.reshape(-1, block_size)
    scales = rows.abs().amax(-1)
    shares = rows / _safe(scales)[:, None]
    return _pack(torch.bucketize(shares, levels[1:], right=True)), scales


@quantize_nf4.mistake(
    "Rounded up to the next level, not to the nearest: compare with the *midpoints* between levels."
)
def rounded_up(weight, levels, block_size):
    rows = weight.reshape(-1, block_size)
    scales = rows.abs().amax(-1)
    return _pack(torch.bucketize(rows / _safe(scales)[:, None], levels[:-1])), scales


@quantize_nf4.mistake(
    "The two codes of a byte are exchanged: the *earlier* weight goes to the upper four bits."
)
def halves_swapped(weight, levels, block_size):
    packed, scales = blocks_to_codes(weight, levels, block_size)
    return packed % 16 * 16 + packed // 16, scales


@quantize_nf4.mistake(
    "The first half of the codes is packed with the second half. Two *neighbours* share a byte."
)
def halves_of_the_weight(weight, levels, block_size):
    packed, scales = blocks_to_codes(weight, levels, block_size)
    codes = torch.stack([packed // 16, packed % 16], -1).flatten()
    first, second = codes.chunk(2)
    return first * 16 + second, scales


@quantize_nf4.mistake(
    "Not packed: one code a byte takes 8 bits a weight, twice what was promised."
)
def not_packed(weight, levels, block_size):
    packed, scales = blocks_to_codes(weight, levels, block_size)
    return torch.stack([packed // 16, packed % 16], -1).flatten(), scales


@quantize_nf4.mistake(
    "The blocks run down the columns. They run along the rows, as the numbers stand in memory."
)
def down_the_columns(weight, levels, block_size):
    rows = weight.T.contiguous().reshape(-1, block_size)
    scales = rows.abs().amax(-1)
    return _pack(_numbered(rows / _safe(scales)[:, None], levels)), scales


@quantize_nf4.mistake(
    "Not divided by the scale: the levels lie in [−1, 1], the weights where they like."
)
def not_divided(weight, levels, block_size):
    rows = weight.reshape(-1, block_size)
    return _pack(_numbered(rows, levels)), rows.abs().amax(-1)


@quantize_nf4.mistake(
    "A block of zeros has the scale 0, and 0/0 is NaN, which is no level. Divide by something"
    " else there."
)
def zero_by_zero(weight, levels, block_size):
    rows = weight.reshape(-1, block_size)
    scales = rows.abs().amax(-1)
    return _pack(_numbered(rows / scales[:, None], levels)), scales


@quantize_nf4.mistake(
    "A block of zeros has the scale 0, and 0/0 is NaN: no level is nearest to it, and `argmin`"
    " answers 0, the code of −1. Divide by something else there."
)
def nearest_to_nan(weight, levels, block_size):
    rows = weight.reshape(-1, block_size)
    scales = rows.abs().amax(-1)
    shares = rows / scales[:, None]
    return _pack((shares[..., None] - levels).abs().argmin(-1)), scales


@quantize_nf4.mistake(
    "The number that stood in for a scale of 0 in the division is returned as the scale. A block of"
    " zeros keeps the scale 0: guard a copy."
)
def stand_in_returned(weight, levels, block_size):
    rows = weight.reshape(-1, block_size)
    scales = _safe(rows.abs().amax(-1))
    return _pack(_numbered(rows / scales[:, None], levels)), scales


@quantize_nf4.mistake(
    "Right numbers, and eight bytes for each: two codes share *one* byte, `torch.uint8`."
)
def eight_bytes(weight, levels, block_size):
    packed, scales = blocks_to_codes(weight, levels, block_size)
    return packed.long(), scales


@quantize_nf4.mistake(
    "Scaled by the block's standard deviation: then the largest weights lie outside of [−1, 1] and"
    " are cut off. The scale is the largest magnitude."
)
def by_deviation(weight, levels, block_size):
    rows = weight.reshape(-1, block_size)
    scales = rows.std(-1)
    return _pack(_numbered(rows / _safe(scales)[:, None], levels)), scales


# -- 08.4 ---------------------------------------------------------------------------------------

dequantize_nf4 = exercise(
    "dequantize_nf4", number="08.4", points=2,
    takes_away=[f"{NF4}:dequantize_nf4", f"{NF4}:NF4Linear"],
)


@dequantize_nf4.reference
def codes_to_weights(packed, scales, levels, shape):
    codes = torch.stack([packed // 16, packed % 16], -1).flatten().long()
    rows = levels[codes].reshape(len(scales), -1) * scales[:, None]
    return rows.reshape(shape)


dequantize_nf4.equivalent("`-1` becomes `1`", "the last of two dimensions is number 1")


@dequantize_nf4.cases(visible=5, fresh=12)
def bytes_and_scales(g):
    block, rows = g.choice([4, 8]), g.choice([2, 4])
    columns = block * g.size(1, 4)
    numbers = g.integers(0, 256, rows * columns // 2)
    return dict(
        packed=numbers.to(torch.uint8), scales=g.uniform(0.1, 3.0, rows * columns // block),
        levels=_levels(g), shape=[rows, columns],
    )


@dequantize_nf4.probe
def weight_again(answer, case):
    return dict(weight=answer.dequantize_nf4(**case), inputs_after=case)


@dequantize_nf4.mistake(
    "The two codes of a byte come out in the wrong order: the upper four bits hold the *earlier*"
    " weight."
)
def swapped_on_the_way_out(packed, scales, levels, shape):
    return codes_to_weights(packed % 16 * 16 + packed // 16, scales, levels, shape)


@dequantize_nf4.mistake(
    "All the upper halves come first, then all the lower ones. Stack the two along a new *last*"
    " dimension before flattening."
)
def all_upper_first(packed, scales, levels, shape):
    codes = torch.cat([packed // 16, packed % 16]).long()
    return (levels[codes].reshape(len(scales), -1) * scales[:, None]).reshape(shape)


@dequantize_nf4.mistake(
    "The scales are repeated as a whole (1, 2, 1, 2, …). Each belongs to a run of neighbours:"
    " 1, 1, …, 2, 2, …"
)
def scales_in_turn(packed, scales, levels, shape):
    codes = torch.stack([packed // 16, packed % 16], -1).flatten().long()
    each = scales.repeat(len(codes) // len(scales))
    return (levels[codes] * each).reshape(shape)


@dequantize_nf4.mistake(
    "Divided by the scale. Going in divided; coming back multiplies."
)
def divided_again(packed, scales, levels, shape):
    return codes_to_weights(packed, 1 / scales, levels, shape)


@dequantize_nf4.mistake(
    "The codes are taken for evenly spaced numbers between −1 and 1. A code is the *place* of a"
    " level in the table: look it up."
)
def codes_as_numbers(packed, scales, levels, shape):
    even = torch.linspace(-1, 1, len(levels))
    return codes_to_weights(packed, scales, even, shape)


@dequantize_nf4.mistake(
    "Not scaled: these are the levels alone, between −1 and 1. Each block has its scale."
)
def levels_alone(packed, scales, levels, shape):
    return codes_to_weights(packed, torch.ones_like(scales), levels, shape)


@dequantize_nf4.mistake(
    "Right numbers, flat: give the weight its shape back."
)
def flat(packed, scales, levels, shape):
    return codes_to_weights(packed, scales, levels, [-1])


@dequantize_nf4.mistake(
    "One scale for all: the first (or the largest). Each block of neighbours has its own."
)
def first_scale(packed, scales, levels, shape):
    return codes_to_weights(packed, scales[:1].expand_as(scales), levels, shape)


# -- 08.5 ---------------------------------------------------------------------------------------

lora_linear = exercise(
    "LoRALinear", number="08.5", points=4, takes_away=["rlhf_minimal.lora:LoRALinear"],
)


@lora_linear.reference
class LoRALinear(nn.Module):
    """h = W·x + (α/r)·B·A·x with W frozen, as the lesson asks it."""

    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.dropout, self.enabled = nn.Dropout(dropout), True
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        output = self.base(x)
        if not self.enabled:
            return output
        narrow = F.linear(self.dropout(x).float(), self.lora_a)
        return output + (self.scaling * F.linear(narrow, self.lora_b)).to(output.dtype)


lora_linear.equivalent("base.in_features ** 0.5", "any small random A will do")
lora_linear.equivalent("`0.5` becomes", "any small random A will do")


@lora_linear.cases(visible=6, fresh=10)
def a_layer_and_its_update(g):
    n_in, n_out, rank = g.size(3, 7), g.size(3, 7), g.integer(2, 4)
    return dict(
        weight=g.normal(n_out, n_in), bias=g.normal(n_out) if g.bool() else None,
        a=g.normal(rank, n_in), b=g.normal(n_out, rank), x=g.normal(g.integer(2, 4), 3, n_in),
        alpha=g.choice([1.0, 8.0, 5.0]), seed=g.seed(),
    )


def _layer(case, dtype=torch.float32):
    n_out, n_in = case["weight"].shape
    layer = nn.Linear(n_in, n_out, bias=case["bias"] is not None)
    layer.weight.data.copy_(case["weight"])
    if case["bias"] is not None:
        layer.bias.data.copy_(case["bias"])
    return layer.to(dtype)


@lora_linear.probe
def fresh_layer(answer, case):
    """Before training: the frozen layer's own output, and what may learn."""
    layer = answer.LoRALinear(_layer(case), len(case["a"]), case["alpha"])
    layer(case["x"]).square().sum().backward()
    trained = sorted(name for name, p in layer.named_parameters() if p.requires_grad)
    return dict(
        shape_of_lora_a=str(tuple(layer.lora_a.shape)),
        shape_of_lora_b=str(tuple(layer.lora_b.shape)),
        lora_b_at_the_start=layer.lora_b, output=layer(case["x"]), trained=trained,
        numbers_kept=sum(p.numel() for p in layer.parameters()),
        scaling=layer.scaling, enabled=layer.enabled,
        a_is_zero=[(row == 0).all().item() for row in layer.lora_a.detach()],
        base_kept=layer.base.weight, base_gradient=layer.base.weight.grad is None,
    )


class _Packed(nn.Module):
    """Stands for a 4-bit layer: what it keeps as `weight` has neither W's shape nor its values."""

    def __init__(self, layer):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(layer.weight.detach().reshape(-1, 1) / 2)
        self.bias = layer.bias

    def forward(self, x):
        return F.linear(x, 2 * self.weight.view(self.out_features, -1), self.bias)


@lora_linear.probe
def a_base_that_is_no_linear(answer, case):
    """A base whose weight cannot be looked at: only calling it gives W·x."""
    layer = answer.LoRALinear(_Packed(_layer(case)), len(case["a"]), case["alpha"])
    shapes = [str(tuple(matrix.shape)) for matrix in (layer.lora_a, layer.lora_b)]
    layer.lora_a.data, layer.lora_b.data = case["a"].clone(), case["b"].clone()
    return dict(shapes_on_a_packed_base=shapes, on_a_packed_base=layer(case["x"]),
                trained=sorted(n for n, p in layer.named_parameters() if p.requires_grad))


@lora_linear.probe
def after_some_steps(answer, case):
    """With given A and B: values and gradients, on and off."""
    layer = answer.LoRALinear(_layer(case), len(case["a"]), case["alpha"])
    layer.lora_a.data, layer.lora_b.data = case["a"].clone(), case["b"].clone()
    x = case["x"].clone().requires_grad_()
    output = layer(x)
    (output * torch.linspace(0.5, 1.5, output.numel()).view(output.shape)).sum().backward()
    layer.enabled = False
    off = layer(case["x"])
    layer.enabled = True
    return dict(on=output, off=off, on_again=layer(case["x"]), grad_a=layer.lora_a.grad,
                grad_b=layer.lora_b.grad, grad_x=x.grad)


@lora_linear.probe
def types_and_dropout(answer, case):
    """A base in bfloat16: adapters float32, output bfloat16. Dropout: in training only."""
    rank = len(case["a"])
    layer = answer.LoRALinear(_layer(case, torch.bfloat16), rank, case["alpha"])
    type_of = dict(lora_a=str(layer.lora_a.dtype), lora_b=str(layer.lora_b.dtype))
    layer.lora_a.data, layer.lora_b.data = case["a"].clone(), case["b"].clone()
    type_of["output"] = str(layer(case["x"].bfloat16()).dtype)
    layer = answer.LoRALinear(_layer(case), rank, case["alpha"], dropout=0.5)
    layer.lora_a.data, layer.lora_b.data = case["a"].clone(), case["b"].clone()
    torch.manual_seed(case["seed"])
    training = layer(case["x"])
    return dict(type_of=type_of, evaluation_with_dropout=layer.eval()(case["x"]),
                training_with_dropout=training)


class _Base(LoRALinear):
    """What the known mistakes have in common with the right layer."""


@lora_linear.mistake(
    "The update is not scaled by α/r: changing the rank would change the size of every step."
)
class NotScaled(_Base):
    def forward(self, x):
        output = self.base(x)
        if not self.enabled:
            return output
        update = F.linear(F.linear(self.dropout(x).float(), self.lora_a), self.lora_b)
        return output + update.to(output.dtype)


@lora_linear.mistake(
    "The update is scaled by α alone; it is α/r."
)
class ScaledByAlpha(_Base):
    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__(base, rank, alpha, dropout)
        self.scaling = alpha


@lora_linear.mistake(
    "The scale is upside down: it is α/r, not r/α."
)
class UpsideDown(_Base):
    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__(base, rank, alpha, dropout)
        self.scaling = rank / alpha


@lora_linear.mistake(
    "Both matrices are transposed: A is (r, in) and B is (out, r), as in h = Wx + (α/r)·B·A·x. The"
    " product would be the same, but saved files would fit nobody else's."
)
class Transposed(_Base):
    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__(base, rank, alpha, dropout)
        self.lora_a.data, self.lora_b.data = self.lora_a.data.T, self.lora_b.data.T

    def forward(self, x):
        output = self.base(x)
        if not self.enabled:
            return output
        narrow = self.dropout(x).float() @ self.lora_a
        return output + (self.scaling * narrow @ self.lora_b).to(output.dtype)


@lora_linear.mistake(
    "There is a second weight as large as the base's (`nn.Linear.__init__` makes one, and it would"
    " stand in memory in 32 bits). Keep base, A and B, and nothing else."
)
class SecondWeight(_Base):
    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__(base, rank, alpha, dropout)
        second = torch.zeros(base.out_features, base.in_features)
        self.second = nn.Parameter(second, requires_grad=False)


@lora_linear.mistake(
    "Dropout falls on the update's output. It belongs on its input, before A."
)
class DropsTheUpdate(_Base):
    def forward(self, x):
        output = self.base(x)
        if not self.enabled:
            return output
        update = self.scaling * F.linear(F.linear(x.float(), self.lora_a), self.lora_b)
        return output + self.dropout(update).to(output.dtype)


@lora_linear.mistake(
    "B is random at the start: the untrained adapter changes the model, and DPO's reference and"
    " policy differ before the first step. B begins at zero."
)
class BothRandom(_Base):
    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__(base, rank, alpha, dropout)
        nn.init.normal_(self.lora_b)


@lora_linear.mistake(
    "A and B both begin at zero. The gradient of each is a product with the other, so both stay"
    " zero for ever. A begins at random."
)
class BothZero(_Base):
    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__(base, rank, alpha, dropout)
        nn.init.zeros_(self.lora_a)


@lora_linear.mistake(
    "The roles are exchanged: A is zero and B random. The start is right, but files and everybody's"
    " code expect B to be the zero one."
)
class RolesExchanged(_Base):
    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__(base, rank, alpha, dropout)
        nn.init.zeros_(self.lora_a)
        nn.init.normal_(self.lora_b)


@lora_linear.mistake(
    "The base layer is not frozen: its weight gets gradients, an optimizer would move it, and the"
    " saving of memory is gone."
)
class NotFrozen(_Base):
    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__(base, rank, alpha, dropout)
        self.base.requires_grad_(True)


@lora_linear.mistake(
    "`enabled` is not looked at: the adapters cannot be switched off, and DPO's reference would"
    " be the policy itself."
)
class AlwaysOn(_Base):
    def forward(self, x):
        output = self.base(x)
        narrow = F.linear(self.dropout(x).float(), self.lora_a)
        return output + (self.scaling * F.linear(narrow, self.lora_b)).to(output.dtype)


@lora_linear.mistake(
    "Switched off, the layer gives 0 (or the update alone): the base's output must stay."
)
class OffMeansNothing(_Base):
    def forward(self, x):
        return super().forward(x) * (1.0 if self.enabled else 0.0)


@lora_linear.mistake(
    "The base's output is missing: this is the update alone."
)
class UpdateAlone(_Base):
    def forward(self, x):
        if not self.enabled:
            return self.base(x)
        return super().forward(x) - self.base(x)


@lora_linear.mistake(
    "The adapters have the base's type. In bfloat16 or float16 a step of 1e-5 is rounded away: they"
    " must be float32 whatever the base computes in."
)
class InTheBasesType(_Base):
    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__(base, rank, alpha, dropout)
        self.lora_a.data = self.lora_a.data.to(base.weight.dtype)
        self.lora_b.data = self.lora_b.data.to(base.weight.dtype)


@lora_linear.mistake(
    "The output is float32 where the base gives bfloat16: the next layer would compute in another"
    " type (or refuse). Cast the update to the output's type before adding."
)
class WidensTheOutput(_Base):
    def forward(self, x):
        output = self.base(x)
        if not self.enabled:
            return output
        return output + self.scaling * F.linear(
            F.linear(self.dropout(x).float(), self.lora_a), self.lora_b
        )


@lora_linear.mistake(
    "There is no dropout. It belongs on the update's input, in training."
)
class WithoutDropout(_Base):
    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__(base, rank, alpha, 0.0)


@lora_linear.mistake(
    "Dropout stays on in evaluation: every log-probability would be another one each time."
    " `nn.Dropout` follows `train()` and `eval()` by itself."
)
class DropoutForEver(_Base):
    def forward(self, x):
        if not self.enabled:
            return self.base(x)
        output, p = self.base(x), self.dropout.p
        narrow = F.linear(F.dropout(x, p).float(), self.lora_a)
        return output + (self.scaling * F.linear(narrow, self.lora_b)).to(output.dtype)


@lora_linear.mistake(
    "Dropout falls on the base's input too: the frozen model itself becomes noisy. It belongs to"
    " the update alone."
)
class DropsTheBasesInput(_Base):
    def forward(self, x):
        if not self.enabled:
            return self.base(x)
        x = self.dropout(x)
        output = self.base(x)
        narrow = F.linear(x.float(), self.lora_a)
        return output + (self.scaling * F.linear(narrow, self.lora_b)).to(output.dtype)


# -- 08.6 ---------------------------------------------------------------------------------------

log_ratios = exercise("log_ratios", number="08.8", points=2)


@log_ratios.reference
def on_for_policy_off_for_reference(model, score, adapters_off):
    policy = score(model)
    with torch.no_grad(), adapters_off(model):
        reference = score(model)
    return policy - reference


@log_ratios.cases(visible=4, fresh=8)
def a_model_with_adapters(g):
    width = g.size(3, 6)
    return dict(
        weight=g.normal(4, width), a=g.normal(2, width), b=g.normal(4, 2),
        x=g.normal(g.size(2, 5), width),
    )


class _Adapted(nn.Module):
    """x·Wᵀ with W frozen, and an update that can be switched off."""

    def __init__(self, weight, a, b):
        super().__init__()
        self.weight = nn.Parameter(weight.clone(), requires_grad=False)
        self.lora_a, self.lora_b = nn.Parameter(a.clone()), nn.Parameter(b.clone())
        self.enabled = True

    def forward(self, x):
        output = F.linear(x, self.weight)
        if not self.enabled:
            return output
        return output + F.linear(F.linear(x, self.lora_a), self.lora_b)


@contextmanager
def _switched_off(model):
    model[0].enabled = False
    try:
        yield model
    finally:
        model[0].enabled = True


@log_ratios.probe
def values_gradients_and_switches(answer, case):
    layer = _Adapted(case["weight"], case["a"], case["b"])
    model, calls = nn.Sequential(layer), []
    x = case["x"].clone().requires_grad_()   # as many recipes have it, with checkpointing

    def score(m):
        value = m(x).log_softmax(-1)[:, 0]
        recorded = "recorded" if value.requires_grad else "not recorded"
        calls.append(f"adapters {'on' if layer.enabled else 'off'}, gradients {recorded}")
        return value

    ratios = answer.log_ratios(model, score, _switched_off)
    if ratios.requires_grad:
        (ratios * torch.linspace(0.5, 1.5, len(ratios))).sum().backward()
    return dict(ratios=ratios, adapters_on_afterwards=layer.enabled, scored_with=sorted(calls),
                grad_a=layer.lora_a.grad, grad_b=layer.lora_b.grad)


@log_ratios.mistake(
    "This is the code as found: the policy is scored inside the block too, where the adapters are"
    " off. Every ratio is 0, the loss stays at log 2, and nothing depends on the adapters."
)
def both_off(model, score, adapters_off):
    with adapters_off(model):
        policy = score(model)
        with torch.no_grad():
            reference = score(model)
    return policy - reference


@log_ratios.mistake(
    "The adapters are on both times: the reference is the policy itself, and every ratio is 0."
)
def both_on(model, score, adapters_off):
    policy = score(model)
    with torch.no_grad():
        reference = score(model)
    return policy - reference


@log_ratios.mistake(
    "Exchanged: the reference minus the policy. Training would move away from the chosen answer."
)
def reference_minus_policy(model, score, adapters_off):
    return -on_for_policy_off_for_reference(model, score, adapters_off)


@log_ratios.mistake(
    "On and off are exchanged: the policy is scored with the adapters off, the reference with them"
    " on. The sign is turned, and no gradient reaches the adapters."
)
def policy_off_reference_on(model, score, adapters_off):
    with adapters_off(model):
        policy = score(model)
    with torch.no_grad():
        reference = score(model)
    return policy - reference


@log_ratios.mistake(
    "The policy is scored without gradients: put only the reference under `torch.no_grad()`."
)
def policy_without_gradient(model, score, adapters_off):
    with torch.no_grad():
        return on_for_policy_off_for_reference(model, score, adapters_off)


@log_ratios.mistake(
    "Right, but the reference is computed with gradients recorded: its activations are kept for a"
    " way back that never comes, about as much memory again as the policy's."
)
def reference_recorded(model, score, adapters_off):
    policy = score(model)
    with adapters_off(model):
        reference = score(model)
    return policy - reference.detach()


@log_ratios.mistake(
    "The ratio of probabilities is asked as a *difference of logarithms*; this is their quotient."
)
def quotient_of_logs(model, score, adapters_off):
    policy = score(model)
    with torch.no_grad(), adapters_off(model):
        reference = score(model)
    return policy / reference


@log_ratios.mistake(
    "The adapters stay off afterwards: the block was entered by hand and never left. The next step"
    " trains nothing. Use `with`."
)
def never_on_again(model, score, adapters_off):
    policy = score(model)
    adapters_off(model).__enter__()
    with torch.no_grad():
        reference = score(model)
    for layer in model.modules():
        if hasattr(layer, "enabled"):
            layer.enabled = False
    return policy - reference


# -- 08.7 ---------------------------------------------------------------------------------------

split_conversation = exercise(
    "split_conversation", number="08.7", points=2,
    reference="rlhf_minimal.preferences:split_conversation",
)



split_conversation.equivalent(
    "`True` becomes `False`", "`strict` only guards against lists of different lengths"
)


@split_conversation.cases(visible=8, fresh=14)
def transcripts(g):
    turns, speaker = [], g.choice(["Human", "Human", "Assistant"])
    for _ in range(g.size(1, 6)):
        turns.append([speaker, _sentence(g)])
        if g.bool(0.8):                            # now and then somebody speaks twice
            speaker = "Assistant" if speaker == "Human" else "Human"
    if g.bool(0.6 if turns[-1][0] == "Human" else 0.2):
        turns.append(["Assistant", ""])            # the end of a prompt
    text = "".join(f"\n\n{who}:{' ' * bool(said)}{said}" for who, said in turns)
    text = g.choice(["", "", g.word(), " \n"]) + text    # text before the first turn, or blank
    return dict(text=text)


def _sentence(g):
    words = " ".join(g.words(g.integer(1, 4)))
    inside = [" Human: no", "\nHuman: she said", "\n\nfirst: " + g.word(), "\n\n1. " + g.word()]
    return words + g.choice(["", *inside])         # a colon or an empty line is no new turn


def _turns(text, pattern=r"(?:^|\n\n)(Human|Assistant):", strip=True):
    before, *found = re.split(pattern, text)
    found = ["Human", before, *found] if before.strip() else found
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        dict(role=roles[who], content=said.strip() if strip else said)
        for who, said in zip(found[::2], found[1::2], strict=True)
    ]


def _joined(turns, by="\n\n"):
    messages = []
    for turn in turns:
        if messages and messages[-1]["role"] == turn["role"]:
            messages[-1]["content"] = f"{messages[-1]['content']}{by}{turn['content']}".strip()
        else:
            messages.append(dict(turn))
    return messages


def _closed(messages):
    if messages and messages[-1] == dict(role="assistant", content=""):
        return messages[:-1]
    return messages


@split_conversation.mistake(
    "The empty last turn of the assistant is kept. It is where the *next* answer will stand; a chat"
    " template would close it, and the model would answer after its own end token."
)
def empty_turn_kept(text):
    return _joined(_turns(text))


@split_conversation.mistake(
    "Two turns of one speaker in a row stay two. Many chat templates insist that speakers alternate"
    " and refuse such a conversation: join them."
)
def not_joined(text):
    return _closed(_turns(text))


@split_conversation.mistake(
    "Text before the first turn is lost. It is the user's."
)
def beginning_lost(text):
    return split_from_first_turn(text)


def split_from_first_turn(text):
    before = re.split(r"(?:^|\n\n)(?:Human|Assistant):", text)[0]
    return _closed(_joined(_turns(text[len(before):])))


@split_conversation.mistake(
    "\"Human:\" in the middle of a sentence starts a turn here. A turn starts behind an empty line,"
    " or at the very beginning."
)
def marks_anywhere(text):
    return _closed(_joined(_turns(text, r"(Human|Assistant):")))


@split_conversation.mistake(
    "Split at every empty line. Answers have paragraphs and lists: only \"\\n\\nHuman:\" and"
    " \"\\n\\nAssistant:\" start a turn."
)
def every_empty_line(text):
    messages = []
    for part in text.split("\n\n"):
        who, colon, said = part.partition(":")
        if colon and who in ("Human", "Assistant"):
            role = "user" if who == "Human" else "assistant"
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += "\n\n" + said.strip()
            else:
                messages.append(dict(role=role, content=said.strip()))
        elif part.strip() and not messages:
            messages.append(dict(role="user", content=part.strip()))
    return _closed(messages)


@split_conversation.mistake(
    "The names are those of the file: chat templates know \"user\" and \"assistant\"."
)
def names_of_the_file(text):
    found = _closed(_joined(_turns(text)))
    return [dict(m, role="Human" if m["role"] == "user" else "Assistant") for m in found]


@split_conversation.mistake(
    "The contents keep the space behind the colon: strip them. A template puts its own marks"
    " around them, and \" Hi\" is another token than \"Hi\"."
)
def not_stripped(text):
    turns = _turns(text, strip=False)
    messages = []
    for turn in turns:
        if messages and messages[-1]["role"] == turn["role"]:
            messages[-1]["content"] += "\n\n" + turn["content"]
        else:
            messages.append(turn)
    return _closed(messages)


@split_conversation.mistake(
    "Each piece is stripped, but not what was joined: an empty last turn behind another one of the"
    " assistant leaves \"\\n\\n\" at the end. Strip after joining, or leave the empty turn out"
    " before."
)
def joined_and_not_stripped(text):
    messages = []
    for turn in _turns(text):
        if messages and messages[-1]["role"] == turn["role"]:
            messages[-1]["content"] += "\n\n" + turn["content"]
        else:
            messages.append(dict(turn))
    return _closed(messages)


@split_conversation.mistake(
    "One line break is enough here to start a turn; it is an empty line, \"\\n\\nHuman:\". A list"
    " or a quoted dialogue inside an answer would be cut up."
)
def one_line_break(text):
    return _closed(_joined(_turns(text, r"(?:^|\n)(Human|Assistant):")))


@split_conversation.mistake(
    "Turns of one speaker are joined by something else than an empty line, \"\\n\\n\"."
)
def joined_by_one_line_break(text):
    return _closed(_joined(_turns(text), by="\n"))


@split_conversation.mistake(
    "The roles are exchanged: \"Human\" is the user."
)
def roles_exchanged(text):
    other = dict(user="assistant", assistant="user")
    found = _closed(_joined(_turns(text)))
    return [dict(m, role=other[m["role"]]) for m in found]


@split_conversation.mistake(
    "The last turn is always dropped, empty or not: the user's question is lost."
)
def last_dropped(text):
    return _joined(_turns(text))[:-1]


# -- 08.8 ---------------------------------------------------------------------------------------

split_pair = exercise(
    "split_pair", number="08.6", points=2,
    takes_away=["rlhf_minimal.preference_files:hh_texts", "rlhf_minimal.preferences:read_hh_rlhf"],
)
MARK = "\n\nAssistant:"


@split_pair.reference
def at_its_own_last_turn(chosen, rejected):
    texts = []
    for text in (chosen, rejected):
        prompt, mark, answer = text.rpartition(MARK)
        if not mark or not answer.strip():
            return None
        texts.append((prompt + mark, answer))
    (prompt, good), (other, bad) = texts
    if prompt != other or good == bad:
        return None
    return prompt, good, bad


@split_pair.cases(visible=10, fresh=16)
def two_transcripts(g):
    turns = "".join(f"{MARK} {g.word()}\n\nHuman: {g.word()}" for _ in range(g.size(0, 2)))
    prompt = f"\n\nHuman: {g.word()} {g.word()}{turns}{MARK}"
    longer = " ".join(g.words(g.integer(3, 6)))
    good, bad = " " + " ".join(g.words(g.integer(1, 3))) + ".", f" {longer}!"
    if g.bool(0.4):
        good, bad = bad, good
    prompts = [prompt, prompt]
    kind = g.choice(["plain", "plain", "no turn", "blank", "longer", "differ", "same", "empty"])
    first = g.integer(0, 2)
    if kind == "empty" and g.bool(0.3):
        kind = "no turn"
    if kind in ("empty", "blank"):
        good, bad = [("", bad), (good, "")][first]
        good, bad = (good or " " * (kind == "blank")), (bad or " " * (kind == "blank"))
    if kind == "differ":                           # the last turn but one was written twice too
        prompts[first] = prompts[first][: -len(MARK)] + g.choice([" now", "?", f"{MARK} hm"]) + MARK
    if kind == "longer":                           # … and went on for another turn
        bad = f" {g.word()}\n\nHuman: {g.word()}{MARK}{bad}"
    if kind == "plain" and g.bool(0.6):            # in a sentence it is no turn
        bad += " My Assistant: no."
    if kind == "same":
        good = bad
    if kind == "no turn":
        return dict(chosen="\n\nHuman: " + g.word(), rejected=prompt + bad)
    return dict(chosen=prompts[0] + good, rejected=prompts[1] + bad)


def _split(text):
    prompt, mark, answer = text.rpartition(MARK)
    return prompt + mark, answer


@split_pair.mistake(
    "Both transcripts are cut at the length of chosen's prompt. Where they differ before the last"
    " answer, a piece of the conversation is taken for an answer: such a row must go."
)
def cut_at_chosens_length(chosen, rejected):
    prompt, good = _split(chosen)
    bad = rejected[len(prompt):]
    if not prompt or not good.strip() or not bad.strip() or good == bad:
        return None
    return prompt, good, bad


@split_pair.mistake(
    "Whether the two prompts are the same is asked only up to chosen's length. Where rejected goes"
    " on for another turn, its rest (\" … Human: … Assistant: …\") passes for an answer. Split"
    " rejected at *its own* last turn."
)
def compared_up_to_chosens_length(chosen, rejected):
    prompt, good = _split(chosen)
    bad = rejected[len(prompt):]
    if not prompt or rejected[: len(prompt)] != prompt:
        return None
    if not good.strip() or not bad.strip() or good == bad:
        return None
    return prompt, good, bad


@split_pair.mistake(
    "Each is split at its own last turn, and the two prompts are not compared. Two answers to"
    " different questions are no comparison."
)
def prompts_not_compared(chosen, rejected):
    (prompt, good), (other, bad) = _split(chosen), _split(rejected)
    if not prompt or not other or not good.strip() or not bad.strip() or good == bad:
        return None
    return prompt, good, bad


@split_pair.mistake(
    "Empty answers are kept. An answer without a token has no log-probability."
)
def empty_kept(chosen, rejected):
    (prompt, good), (other, bad) = _split(chosen), _split(rejected)
    if not prompt or prompt != other or good == bad:
        return None
    return prompt, good, bad


@split_pair.mistake(
    "An answer of spaces alone passes for an answer: strip before you ask whether it is empty."
)
def blank_kept(chosen, rejected):
    (prompt, good), (other, bad) = _split(chosen), _split(rejected)
    if not prompt or prompt != other or not good or not bad or good == bad:
        return None
    return prompt, good, bad


@split_pair.mistake(
    "Twice the same answer is kept. Its loss is log 2 whatever the model does: nothing to learn,"
    " and the mean is pulled towards it."
)
def same_kept(chosen, rejected):
    (prompt, good), (other, bad) = _split(chosen), _split(rejected)
    if not prompt or prompt != other or not good.strip() or not bad.strip():
        return None
    return prompt, good, bad


@split_pair.mistake(
    "Split at the *first* turn of the assistant: everything that follows passes for one long"
    " answer, the user's turns included."
)
def at_the_first_turn(chosen, rejected):
    texts = []
    for text in (chosen, rejected):
        prompt, mark, answer = text.partition(MARK)
        if not mark or not answer.strip():
            return None
        texts.append((prompt + mark, answer))
    (prompt, good), (other, bad) = texts
    return (prompt, good, bad) if prompt == other and good != bad else None


@split_pair.mistake(
    "\"Assistant:\" in the middle of an answer is taken for a turn. A turn starts behind an empty"
    " line: \"\\n\\nAssistant:\"."
)
def mark_in_a_sentence(chosen, rejected):
    texts = []
    for text in (chosen, rejected):
        prompt, mark, answer = text.rpartition("Assistant:")
        if not mark or not answer.strip():
            return None
        texts.append((prompt + mark, answer))
    (prompt, good), (other, bad) = texts
    return (prompt, good, bad) if prompt == other and good != bad else None


@split_pair.mistake(
    "The prompt does not end in \"\\n\\nAssistant:\". Without it the model would first have to"
    " write whose turn it is."
)
def mark_lost(chosen, rejected):
    found = at_its_own_last_turn(chosen, rejected)
    return found and (found[0][: -len(MARK)], *found[1:])


@split_pair.mistake(
    "Chosen and rejected are exchanged: training would go the wrong way."
)
def exchanged(chosen, rejected):
    found = at_its_own_last_turn(chosen, rejected)
    return found and (found[0], found[2], found[1])


@split_pair.mistake(
    "The answers are stripped. Here the text must stay as it stands in the file: prompt + answer is"
    " the transcript again. (What a chat template makes of it comes later.)"
)
def answers_stripped(chosen, rejected):
    found = at_its_own_last_turn(chosen, rejected)
    return found and (found[0], found[1].strip(), found[2].strip())
