"""4-bit NormalFloat: weights stored as sixteen levels that suit a Gaussian, and a scale a block.

Follows Dettmers et al. 2023 (QLoRA), arXiv 2305.14314. A weight costs 4 bits, plus one float32
scale shared by a block of 64, which is half a bit more; *double quantisation* stores those scales
in 8 bits, 0.127 bits a weight instead of 0.5.

The weights' codes and values are bit for bit those of bitsandbytes (but for a last block that is
not full, where its CPU code divides by the scale and this multiplies by its inverse, as everywhere
else: a weight within an ulp of a midpoint may go the other way). So are values read from its doubly
quantised scales; writing them, its CPU code rounds by a table of 65,536 entries and takes the
neighbour of the nearest level for about one scale in 500, those beside a midpoint.

Leaves out: FP4 (which is what ``load_in_4bit=True`` alone gives) and GPU kernels. Here each product
unpacks the whole weight first, as the arithmetic says; on a GPU bitsandbytes does it in pieces.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from rlhf_minimal.checks import check_finite, check_positive

__all__ = [
    "NF4Linear",
    "NF4Tensor",
    "QuantizedScales",
    "bits_per_weight",
    "dequantize_nf4",
    "dequantize_scales",
    "dynamic_codebook",
    "nf4_codebook",
    "quantize_linears",
    "quantize_nf4",
    "quantize_scales",
]

SCALE_BLOCK = 256  # scales that share a second-level scale
# Where the outermost level stands among N(0, 1)'s quantiles: halfway between the tail that 15 equal
# bins would leave and that of 16, 1 − (1/30 + 1/32)/2. These are the digits that the authors' code
# has; with more of them the levels differ from everybody's in the last bit.
OUTERMOST = 0.9677083


def nf4_codebook() -> torch.Tensor:
    """The sixteen levels: quantiles of N(0, 1) scaled to [−1, 1], with an exact zero, ``(16,)``.

    Eight positive levels and seven negative ones, at evenly spaced probabilities between the
    outermost and ½; zero is the sixteenth, so that a weight of 0 stays 0. Between neighbours lies
    about the same share of a Gaussian, so all sixteen codes are used about equally.

    >>> nf4_codebook()[[0, 7, 8, 15]]
    tensor([-1.0000,  0.0000,  0.0796,  1.0000])
    """
    positive = torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 9)[:-1].double())
    negative = -torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 8)[:-1].double())
    levels = torch.cat([negative, torch.zeros(1), positive]).float().sort().values
    return levels / levels.max()


def dynamic_codebook() -> torch.Tensor:
    """The 256 levels for the scales: finer near zero, by powers of ten, ``(256,)`` (Dettmers 2016).

    Each factor of ten has twice as many levels as the one below: 1, 2, … 64 in (0.1, 1), on either
    side of zero; 0 and 1 complete them.
    """
    levels = []
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = 10 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2
        levels += [middles, -middles]
    return torch.cat([*levels, torch.tensor([0.0, 1.0])]).sort().values


class QuantizedScales(NamedTuple):
    """Scales in 8 bits: level numbers ``(blocks,)``, their own scales, and the mean taken off."""

    codes: torch.Tensor
    absmax: torch.Tensor
    mean: torch.Tensor


class NF4Tensor(NamedTuple):
    """A weight in 4 bits: two codes a byte, the scales of its blocks, and its shape."""

    packed: torch.Tensor  # uint8, (ceil(n / 2),); the earlier weight in the upper four bits
    scales: torch.Tensor | QuantizedScales
    shape: tuple[int, ...]
    block_size: int


def _in_blocks(values, size: int):
    """Flat values as rows of ``size``; the last row is filled up with zeros."""
    flat = values.reshape(-1).float()
    return F.pad(flat, (0, -flat.numel() % size)).view(-1, size)


def _nearest(rows, levels):
    """Scale each row to [−1, 1] and number the nearest level: ``(codes, absmax)``."""
    absmax = rows.abs().amax(-1)
    shares = rows * (1 / absmax.clamp(min=1e-38))[:, None]  # a row of zeros stays zero
    return torch.bucketize(shares.clamp(-1, 1), (levels[:-1] + levels[1:]) / 2), absmax


def quantize_scales(scales) -> QuantizedScales:
    """Double quantisation: scales are all positive, so their mean goes first, then 8 bits each."""
    mean = scales.mean()
    codes, absmax = _nearest(_in_blocks(scales - mean, SCALE_BLOCK), dynamic_codebook().to(scales))
    return QuantizedScales(codes.view(-1)[: scales.numel()].to(torch.uint8), absmax, mean)


def dequantize_scales(quantized: QuantizedScales):
    """The scales again, ``(blocks,)``."""
    levels = dynamic_codebook().to(quantized.absmax)[quantized.codes.int()]
    each = quantized.absmax.repeat_interleave(SCALE_BLOCK)[: levels.numel()]
    return levels * each + quantized.mean


def quantize_nf4(weight, block_size: int = 64, double: bool = False) -> NF4Tensor:
    """Blocks of weights, each divided by its largest magnitude, then rounded to the nearest level.

    Args:
        weight: floating point, any shape; blocks run along its rows, and across their ends.
        block_size: weights that share a scale; an outlier spoils its own block alone.
        double: keep the scales in 8 bits too.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: it is empty or holds NaN or infinity, or block_size is below 1.

    >>> quantized = quantize_nf4(torch.tensor([2.0, -2.0, 0.0, 1.0]), block_size=4)
    >>> [f"{byte:08b}" for byte in quantized.packed.tolist()], quantized.scales
    (['11110000', '01111100'], tensor([2.]))
    """
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        kind = getattr(weight, "dtype", type(weight).__name__)
        raise TypeError(f"weight must be a floating-point tensor, not {kind}")
    check_positive(block_size=block_size, size_of_weight=weight.numel())
    check_finite("weight", weight)
    rows = _in_blocks(weight.detach(), block_size)
    codes, absmax = _nearest(rows, nf4_codebook().to(rows.device))
    codes = codes.view(-1)[: weight.numel()].to(torch.uint8)
    codes = F.pad(codes, (0, codes.numel() % 2), value=7)  # level 7 is zero
    packed = codes[::2] << 4 | codes[1::2]
    scales = quantize_scales(absmax) if double else absmax
    return NF4Tensor(packed, scales, tuple(weight.shape), block_size)


def dequantize_nf4(quantized: NF4Tensor):
    """The weight as float32: the level of each code, times the scale of its block.

    >>> dequantize_nf4(quantize_nf4(torch.tensor([2.0, -2.0, 0.0, 1.0]), block_size=4))
    tensor([ 2.0000, -2.0000,  0.0000,  0.8814])
    """
    packed, scales, shape, block_size = quantized
    codes = torch.stack([packed >> 4, packed & 15], -1).view(-1)[: torch.Size(shape).numel()]
    levels = nf4_codebook().to(packed.device)[codes.int()]
    if isinstance(scales, QuantizedScales):
        scales = dequantize_scales(scales)
    rows = _in_blocks(levels, block_size) * scales[:, None]
    return rows.view(-1)[: levels.numel()].view(shape)


def bits_per_weight(block_size: int = 64, double: bool = True) -> float:
    """Storage of one weight, scales included.

    >>> bits_per_weight(double=False), round(bits_per_weight(), 3)
    (4.5, 4.127)
    """
    scale = 8 + 32 / SCALE_BLOCK if double else 32
    return 4 + scale / block_size


class _Product(torch.autograd.Function):
    """x·Wᵀ that unpacks W again on the way back, where plain autograd would keep it in full."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return x @ layer.weight_as(x.dtype).T

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.layer.weight_as(grad.dtype), None


class NF4Linear(nn.Module):
    """A linear layer whose frozen weight is kept in 4 bits, and computes in its input's type.

    Args:
        linear: the layer to take over; its bias stays as it is.
        double: keep the blocks' scales in 8 bits.
    """

    def __init__(self, linear: nn.Linear, block_size: int = 64, double: bool = True):
        super().__init__()
        quantized = quantize_nf4(linear.weight, block_size, double)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.block_size, self.dtype = block_size, linear.weight.dtype
        self.register_buffer("packed", quantized.packed)
        scales = quantized.scales if double else QuantizedScales(*[None] * 3)
        self.register_buffer("absmax", scales.absmax if double else quantized.scales)
        self.register_buffer("scale_codes", scales.codes)
        self.register_buffer("scale_mean", scales.mean)
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def weight_as(self, dtype):
        """The weight unpacked, ``(out_features, in_features)``."""
        scales = self.absmax
        if self.scale_codes is not None:
            scales = QuantizedScales(self.scale_codes, self.absmax, self.scale_mean)
        shape = (self.out_features, self.in_features)
        return dequantize_nf4(NF4Tensor(self.packed, scales, shape, self.block_size)).to(dtype)

    def forward(self, x):
        """``(..., in_features)`` to ``(..., out_features)``."""
        product = _Product.apply(x, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)


def quantize_linears(model, skip=("lm_head",), block_size: int = 64):
    """Replace every linear layer of ``model`` by an :class:`NF4Linear`, in place.

    Args:
        skip: names of layers to leave alone. The output layer stays: it is often the embedding
            too, and its errors go straight into every log-probability.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name not in skip:
                setattr(parent, name, NF4Linear(child, block_size))
    return model
