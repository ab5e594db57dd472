"""A training step on shapes alone: the peak of its memory, counted, without the memory.

PyTorch's *meta* tensors have a shape and a type and no contents. A step on them runs the very code
that a GPU will run (layers, adapters, checkpointing, bitsandbytes' 4-bit products, the way back)
and every tensor is made and let go of where the real one would be: what lives at once can be
counted. The ledger of :mod:`rlhf_minimal.memory` is arithmetic; this is a check of it at full size
on any laptop.

Attention is PyTorch's plain one here, whose T × T scores are counted; a fused kernel keeps none.

Leaves out: what the tensors say, gaps between allocations, the driver's own share of a GPU, and the
workspace inside a kernel, which no tensor shows.
"""

import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_minimal.checks import check_positive
from rlhf_minimal.engine import AnswerScorer
from rlhf_minimal.lora import add_lora
from rlhf_minimal.quantized import kept_whole, prepare_for_training

__all__ = ["TensorsAlive", "rehearse_step"]


class TensorsAlive(TorchDispatchMode):
    """Within the block, counts the bytes of all tensors that live at once, by storage.

    Args:
        known: tensors that live already.

    Attributes:
        at_first, now, most: bytes of ``known``, at present, and at most so far.
    """

    def __init__(self, known=()):
        super().__init__()
        self.alive, self.now, self.most = {}, 0, 0
        for tensor in known:
            self.note(tensor)
        self.at_first = self.now

    def note(self, tensor) -> None:
        """Count a tensor's storage from now until nothing holds it any more."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return

        def gone(_):
            del self.alive[key]
            self.now -= size

        self.now += size
        self.most = max(self.most, self.now)
        self.alive[key] = weakref.ref(storage, gone)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True  # "is the mask all ones?": here it is, and a meta tensor cannot tell
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.note(leaf)
        return result


def rehearse_step(
    model,
    *,
    quantize: bool = False,
    lora_rank: int,
    targets,
    optimizer_bytes: int = 8,
    sequences: int = 2,
    prompt: int = 128,
    length: int = 256,
    logits_chunk: int | None = 128,
    checkpointing: bool = True,
) -> dict[str, int]:
    """Bytes that live during a step with adapters, counted.

    Args:
        model: of :func:`~rlhf_minimal.memory.empty_model`, in the type it computes in; is used up.
        prompt: tokens of each sequence that are not scored.
        others: as for :func:`~rlhf_minimal.memory.memory_ledger`.

    Returns:
        ``{"kept": …, "peak": …}``: weights, adapters, gradients and optimizer, and the most that
        lives at any moment, as it is from the second part of the second step on.

    Raises:
        ImportError: ``quantize`` without bitsandbytes, whose layers are what a GPU runs.
    """
    check_positive(sequences=sequences, prompt=prompt, answer=length - prompt)
    held = _quantize_shapes(model) if quantize else []
    add_lora(model, targets, lora_rank, 2.0 * lora_rank, dropout=0.05)
    prepare_for_training(model, checkpointing)
    score = AnswerScorer(model, logits_chunk)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            size = optimizer_bytes * parameter.numel()
            held += [parameter.grad, torch.empty(size, dtype=torch.uint8, device="meta")]
    tokens = torch.zeros(sequences, length, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    mask[:, prompt:] = 1
    counted = TensorsAlive([*model.parameters(), *model.buffers(), *held])
    with counted:
        score(tokens, torch.ones_like(tokens), mask).sum().backward()
    return {"kept": counted.at_first, "peak": counted.most}


def _quantize_shapes(model) -> list[torch.Tensor]:
    """Every linear layer but the output layer as bitsandbytes' 4-bit layer, on shapes, in place.

    Returns:
        The tensors that belong to the weights and are neither parameters nor buffers.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    Params4bit(torch.zeros(1, 64)).to("cpu")  # bitsandbytes keeps its first codebook, for good
    held, whole = [], kept_whole(model)
    for name, linear in list(model.named_modules()):
        if type(linear) is not nn.Linear or name in whole:
            continue
        parent, _, last = name.rpartition(".")
        dtype, sizes = linear.weight.dtype, (linear.in_features, linear.out_features)
        layer = Linear4bit(*sizes, False, dtype, quant_type="nf4", device="meta")
        weight = Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
        layer.weight = weight._quantize(torch.device("meta"))
        layer.quant_state = state = layer.weight.quant_state
        held += [state.absmax, state.offset, state.state2.absmax]
        setattr(model.get_submodule(parent), last, layer)
    return held
