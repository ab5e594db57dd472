"""Real models with 4-bit weights: bitsandbytes' layers where it is there, else the course's own.

Both hold the same bits (see :mod:`rlhf_minimal.nf4`). On a GPU the products are bitsandbytes',
whose kernels unpack in pieces; on a CPU either will do.

Leaves out: FP4, 8-bit weights, and choosing block sizes.
"""

import importlib.util

import torch
from torch import nn

from rlhf_minimal.lora import LoRALinear
from rlhf_minimal.nf4 import NF4Linear
from rlhf_minimal.training import adamw

__all__ = [
    "check_widths",
    "choose_adamw",
    "compute_dtype",
    "count_weights",
    "kept_whole",
    "prepare_for_training",
    "quantize_model",
    "same_numbers_everywhere",
    "to_nf4",
]

CPU_WIDTH = 64


def compute_dtype(device, asked: str | None = None) -> torch.dtype:
    """The type to compute in: float32 on a CPU; on a GPU bfloat16 where it has it, else float16.

    Args:
        asked: "float32", "float16" or "bfloat16"; ``None`` chooses.

    Raises:
        ValueError: bfloat16 on a GPU without units for it, where it would be emulated.
    """
    if torch.device(device).type == "cpu":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "bfloat16" and not native:
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} has no bfloat16 units; ask for float16 "
            "(the loss is then scaled)"
        )
    if asked is not None:
        return getattr(torch, asked)
    return torch.bfloat16 if native else torch.float16


def check_widths(model, device) -> None:
    """Refuse layers that bitsandbytes unpacks wrongly on some CPUs, without a word.

    Its CPU kernel for wide registers takes a row for whole blocks of 64: in a layer of 352 inputs
    nine values in ten come out wrong. The course's own :func:`~rlhf_minimal.nf4.dequantize_nf4`
    has no such limit, nor have its kernels for GPUs.

    Raises:
        ValueError: a layer whose input width is no multiple of 64; the message names it.
    """
    if torch.device(device).type != "cpu":
        return
    for name, layer in _linears(model):
        if layer.in_features % CPU_WIDTH:
            raise ValueError(
                f"{name} has {layer.in_features} inputs, no multiple of {CPU_WIDTH}: bitsandbytes "
                "unpacks such 4-bit layers wrongly on a CPU. Use a GPU, a model with other widths, "
                "or the course's own layers (rlhf_minimal.nf4.quantize_linears)"
            )


def kept_whole(model) -> list[str]:
    """Full names of layers that stay out of 4 bits: the output layer, whatever a model calls it.

    Its errors would go straight into every log-probability, and it is often the embedding too.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return [name for name, module in model.named_modules() if module is output]


def count_weights(model) -> int:
    """How many weights a model has; a byte that holds two 4-bit ones counts as two."""
    packed = [m for m in model.modules() if isinstance(m, NF4Linear)]
    states = ((p, getattr(p, "quant_state", None)) for p in model.parameters())
    plain = sum(p.numel() if state is None else state.shape.numel() for p, state in states)
    return plain + sum(m.in_features * m.out_features for m in packed)


def _linears(model):
    whole = kept_whole(model)
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name not in whole:
            yield name, module


def to_nf4(linear: nn.Linear, dtype, device):
    """One layer with its weight in 4 bits, on ``device``, computing in ``dtype``."""
    if importlib.util.find_spec("bitsandbytes") is None:
        if torch.device(device).type != "cpu":
            raise ImportError("4-bit weights on a GPU need bitsandbytes: pip install bitsandbytes")
        return NF4Linear(linear.to(dtype))
    from bitsandbytes.nn import Linear4bit, Params4bit

    sizes = linear.in_features, linear.out_features
    layer = Linear4bit(*sizes, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
    layer.weight = Params4bit(
        linear.weight.detach().to(dtype), requires_grad=False, quant_type="nf4"
    )
    layer.bias = linear.bias
    return layer.to(device)


def quantize_model(model, dtype, device):
    """Every linear layer but the output layer in 4 bits, in place, layer by layer.

    Raises:
        ValueError: see :func:`check_widths`.
    """
    if importlib.util.find_spec("bitsandbytes") is not None:
        check_widths(model, device)
    for name, layer in list(_linears(model)):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, to_nf4(layer, dtype, device))
    same_numbers_everywhere(model)
    return model.to(device)


def same_numbers_everywhere(model) -> None:
    """On CPUs with bfloat16 units bitsandbytes computes in bfloat16, but only without gradients.

    The reference's log-probabilities would then be of another precision than the policy's, and the
    difference would look like something learnt.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def prepare_for_training(model, checkpointing: bool = True):
    """Adapters' dropout on, everything else as in inference, activations checkpointed. In place.

    Dropout of the model's own stays off: it would add noise to one side of every log-ratio.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.dropout.train()
    model.config.use_cache = False
    if checkpointing:
        new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
        getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True  # the layer itself, which checks it; not what is inside
    return model


def choose_adamw(asked: str | None, device):
    """AdamW, called with a model and a learning rate: in 8 bits and paged where that pays.

    Args:
        asked: "adamw", "adamw8bit", or ``None``: 8 bits on a GPU where bitsandbytes is installed.

    Raises:
        ImportError: 8 bits were asked for and bitsandbytes is missing.
    """
    available = importlib.util.find_spec("bitsandbytes") is not None
    on_gpu = torch.device(device).type == "cuda"
    if asked == "adamw8bit" and not available:
        raise ImportError("8-bit AdamW needs bitsandbytes: pip install bitsandbytes")
    if asked == "adamw" or not available or (asked is None and not on_gpu):
        return adamw
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    kind = PagedAdamW8bit if on_gpu else AdamW8bit
    return lambda model, lr: kind([p for p in model.parameters() if p.requires_grad], lr=lr)
