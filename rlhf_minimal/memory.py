"""The memory ledger: what a training run will hold, by kind, before anything is loaded.

The first question about a 7B model is not how to train it but whether it fits. Everything here is
arithmetic on the model's shapes, which its configuration gives without its weights. What each kind
costs follows Dettmers et al. 2023 (QLoRA), arXiv 2305.14314, for weights and adapters, and Chen et
al. 2016, arXiv 1604.06174, for checkpointed activations.

Leaves out: the driver's own share of a GPU (some 0.3 to 0.6 GiB), gaps between allocations, the
T × T scores of attention where no fused kernel spares them (:mod:`rlhf_minimal.rehearsal` counts
those), and the peak while a checkpoint is being read.
"""

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

from rlhf_minimal.checks import check_positive
from rlhf_minimal.lora import linear_layers
from rlhf_minimal.nf4 import bits_per_weight
from rlhf_minimal.quantized import kept_whole

__all__ = [
    "available_bytes",
    "check_fits",
    "empty_model",
    "forget_peak",
    "ledger_text",
    "memory_ledger",
    "peak_bytes",
    "return_freed_memory",
]

GIB = 2**30


def empty_model(config, dtype=None):
    """A transformers model of that configuration without weights: shapes only, in seconds."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def memory_ledger(
    model,
    *,
    quantize: bool = False,
    weight_bytes: int = 2,
    lora_rank: int | None = None,
    targets=(),
    optimizer_bytes: int = 8,
    sequences: int = 2,
    length: int = 256,
    logits_chunk: int | None = 128,
    checkpointing: bool = True,
) -> dict[str, int]:
    """Bytes by kind, at the worst moment of a training step.

    Args:
        model: a causal language model; :func:`empty_model`'s will do.
        quantize: linear layers but the output layer in 4 bits, scales doubly quantised.
        weight_bytes: of one weight that is not in 4 bits, and of one activation: 2 or 4.
        lora_rank: adapters' rank; ``None`` trains all weights.
        targets: layers with adapters, as for :func:`~rlhf_minimal.lora.add_lora`.
        optimizer_bytes: AdamW's state for one trained weight: 8 in float32, 2 in 8 bits.
        sequences, length: answers in memory at once (two a pair) and tokens of each.
        logits_chunk: tokens whose logits are in memory at once; ``None``: all.
        checkpointing: keep the layers' inputs only, and compute a layer again on its way back.
    """
    check_positive(weight_bytes=weight_bytes, sequences=sequences, length=length)
    layers, whole = linear_layers(model), kept_whole(model)
    total = sum(p.numel() for p in model.parameters())
    packed = [
        layer.in_features * layer.out_features
        for name, layer in layers.items()
        if quantize and name not in whole
    ]
    if lora_rank is None:
        trained, trained_bytes = total, 0  # counted as weights already
    else:
        adapted = [m for name, m in layers.items() if name.rpartition(".")[2] in targets]
        trained = sum(lora_rank * (m.in_features + m.out_features) for m in adapted)
        trained_bytes = 4 * trained
    gradient_bytes = weight_bytes if lora_rank is None else 4
    ledger = {
        "weights in 4 bits, scales included": round(sum(packed) * bits_per_weight() / 8),
        f"weights in {8 * weight_bytes} bits": (total - sum(packed)) * weight_bytes,
        "adapters, float32": trained_bytes,
        "gradients": trained * gradient_bytes,
        "optimizer": trained * optimizer_bytes,
        "one 4-bit weight unpacked": max(packed, default=0) * weight_bytes,
        "logits and their gradient": _logits(model, sequences, length, logits_chunk, weight_bytes),
        "activations": _activations(
            model.config,
            sequences * length,
            weight_bytes,
            lora_rank,
            targets,
            checkpointing,
        ),
    }
    return {kind: size for kind, size in ledger.items() if size}


def _logits(model, sequences, length, chunk, weight_bytes) -> int:
    """As the layer gives them, in float32, their exponentials, and the gradient."""
    tokens = sequences * length if chunk is None else min(chunk, sequences * length)
    return tokens * model.config.vocab_size * (weight_bytes + 3 * 4)


def _activations(config, tokens, weight_bytes, rank, targets, checkpointing) -> int:
    """What the way back needs of all layers' insides; checkpointed, of one, and all their inputs.

    Per token of a layer, in units of the width w, its keys' and values' width k, and the feed-
    forward's inner width i. The peak stands at the feed-forward's way back, whose gradients of size
    i, one in float32 where adapters are, come on top.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * width  # GPT-2's, for one, is unsaid
    kv_width = width * (getattr(config, "num_key_value_heads", None) or heads) // heads
    norms = 2 * width * 4  # computed in float32
    attention = (2 * width + 2 * kv_width) * weight_bytes  # rotated q and k, v, the output
    feed_forward = 3 * inner * weight_bytes  # the gate before and after its activation, and up
    if rank is None:  # the inputs of weights that train: both norms' before and after, down_proj's
        others = (4 * width + inner) * weight_bytes
    else:  # an adapter keeps its own input, dropped out, in float32, the dropout, and r numbers
        inputs = {"down_proj": inner}
        others = sum(
            (4 + weight_bytes) * inputs.get(t, width) + 4 * rank for t in targets if t != "lm_head"
        )
    inside = norms + attention + feed_forward + others
    ends = width * (2 * weight_bytes + 4)  # the embeddings; the last norm, in float32 and after
    gradients, depth = inner * (weight_bytes + 4), config.num_hidden_layers
    if checkpointing:
        return tokens * (depth * width * weight_bytes + inside + gradients + ends)
    return tokens * (depth * inside + gradients + ends)


def ledger_text(ledger: dict[str, int]) -> str:
    """The ledger as a table in MiB, with its sum in GiB too."""
    total = sum(ledger.values())
    rows = [
        f"{kind:36}{size / 2**20:10,.1f} MiB" for kind, size in [*ledger.items(), ("all", total)]
    ]
    return "\n".join(rows) + f" = {total / GIB:.2f} GiB"


def available_bytes(device) -> int | None:
    """Memory free on a GPU, or for this process on the host; ``None`` where it cannot be told."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next((int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvail")), free)
    except (OSError, ValueError, AttributeError):
        return None
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def check_fits(ledger: dict[str, int], available: int | None) -> None:
    """Refuse a run that cannot fit, before its weights are loaded.

    Raises:
        MemoryError: it needs more than there is; the message says what is large, and what helps.
    """
    needed = sum(ledger.values())
    if available is None or needed <= available:
        return
    largest = max(ledger, key=ledger.get)
    raise MemoryError(
        f"the run needs {needed / GIB:.1f} GiB and {available / GIB:.1f} GiB are free; the largest "
        f"part is {largest}, {ledger[largest] / GIB:.1f} GiB. 4-bit weights, adapters, shorter "
        "sequences or a smaller model need less"
    )


def return_freed_memory(at_least: int = 2**22) -> None:
    """Have freed blocks of ``at_least`` bytes go back to the system at once; on Linux only.

    Left alone, its C library keeps blocks of up to 32 MiB in a heap of its own, and the gaps there
    can double what a large model takes on a CPU. (``mallopt``'s M_MMAP_THRESHOLD is parameter −3.)
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, at_least)


def peak_bytes(device) -> int | None:
    """The most that tensors held on a GPU, or that this process held on the host, so far."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM"))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device) -> None:
    """Let :func:`peak_bytes` of the host start anew, where the system can; a GPU's goes on.

    While a checkpoint is read its file is mapped into memory, and counts as if it had been held.
    """
    if torch.device(device).type == "cpu":
        with suppress(OSError):  # no Linux, or not allowed: the peak then has the reading in it
            Path("/proc/self/clear_refs").write_text("5")
