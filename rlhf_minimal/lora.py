"""LoRA: train a large model through two thin matrices beside each frozen weight.

Follows Hu et al. 2021, arXiv 2106.09685: h = W·x + (α/r)·B·A·x, W frozen, B zero at first, so that
training starts at the frozen model itself. With the adapters switched off the model *is* the frozen
one, so a preference loss needs no second copy for its reference.

Leaves out: adapters on embeddings and convolutions, and a learning rate of its own for B. Saving
and loading are in :mod:`rlhf_minimal.checkpoints`.
"""

import math
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from rlhf_minimal.checks import check_positive

__all__ = [
    "LoRALinear",
    "adapters_disabled",
    "add_lora",
    "linear_layers",
    "lora_layers",
    "lora_parameters",
    "merge_lora",
    "unmerge_lora",
    "unpacked_weight",
]


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank update beside it.

    Args:
        base: any layer with ``in_features`` and ``out_features``: ``nn.Linear``, the course's
            :class:`~rlhf_minimal.nf4.NF4Linear` or a 4-bit layer of bitsandbytes. It is frozen.
        rank: r, the inner width.
        alpha: α; the update is scaled by α/r, so that r can change without a new learning rate.
        dropout: on the update's input, while training.

    Raises:
        ValueError: a rank below 1 or above what the layer's width allows, a bad alpha or dropout.
        TypeError: ``base`` is no linear layer.

    >>> layer = LoRALinear(nn.Linear(3, 2), rank=1, alpha=2.0)
    >>> x = torch.ones(1, 3)
    >>> bool((layer(x) == layer.base(x)).all())  # B is zero
    True
    """

    def __init__(self, base, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        for name in ("in_features", "out_features"):
            if not isinstance(getattr(base, name, None), int):
                raise TypeError(f"base must be a linear layer, not {type(base).__name__}")
        check_positive(rank=rank, alpha=alpha)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must be in [0, 1)")
        narrow = min(base.in_features, base.out_features)
        if rank > narrow:
            raise ValueError(f"rank is {rank}; above {narrow}, the layer's width, it saves nothing")
        self.base = base.requires_grad_(False)
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.in_features, self.out_features = base.in_features, base.out_features
        self.enabled = True
        self.dropout = nn.Dropout(dropout)
        device = next((t.device for t in _tensors(base)), None)
        # float32, whatever the base computes in: steps of 1e-5 vanish in half precision
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features, device=device).float())
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, device=device).float())
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x):
        """``(..., in_features)`` to ``(..., out_features)``, in the type of the base's output."""
        output = self.base(x)
        if not self.enabled:
            return output
        narrow = F.linear(self.dropout(x).to(self.lora_a.dtype), self.lora_a)  # (..., r)
        return output + (self.scaling * F.linear(narrow, self.lora_b)).to(output.dtype)

    @property
    def weight(self):
        """The frozen weight: some models ask an output layer for its type or place."""
        return self.base.weight

    @torch.no_grad()
    def merged_linear(self) -> nn.Linear:
        """One plain layer that computes the same, W + (α/r)·B·A, in the base's own type."""
        weight = unpacked_weight(self.base)
        weight = self.base.weight if weight is None else weight
        update = self.scaling * (self.lora_b @ self.lora_a)
        linear = nn.Linear(self.in_features, self.out_features, bias=self.base.bias is not None)
        merged = (weight.float() + update).to(weight.dtype)
        linear.weight = nn.Parameter(merged, requires_grad=False)
        if self.base.bias is not None:
            linear.bias = nn.Parameter(self.base.bias.detach().clone(), requires_grad=False)
        return linear


def _tensors(module):
    yield from module.parameters()
    yield from module.buffers()


def unpacked_weight(layer):
    """A 4-bit layer's whole weight, in the type it computes in; ``None`` for any other layer."""
    if hasattr(layer, "weight_as"):
        return layer.weight_as(layer.dtype)
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    if state is None:
        return None
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, state)


def linear_layers(model) -> dict[str, nn.Module]:
    """Every layer that can carry an adapter, by its full name, those that carry one included."""
    found, inside = {}, ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, LoRALinear):
            found[name], inside = module, (*inside, f"{name}.")
        elif hasattr(module, "in_features") and hasattr(module, "out_features"):
            found[name] = module
    return found


def add_lora(model, targets, rank: int, alpha: float, dropout: float = 0.0, seed: int = 0):
    """Freeze ``model`` and put an adapter on every layer named in ``targets``, in place.

    Args:
        targets: last parts of layer names, such as ``["q_proj", "v_proj"]``.
        rank, alpha, dropout: as for :class:`LoRALinear`.
        seed: of the adapters' first values.

    Returns:
        The model.

    Raises:
        ValueError: a target that no layer has; the message names those that exist. A layer that
            has an adapter already.
    """
    if isinstance(targets, str):
        targets = [targets]
    layers = linear_layers(model)
    present = sorted({name.rpartition(".")[2] for name in layers})
    missing = [target for target in targets if target not in present]
    if missing or not targets:
        raise ValueError(f"no layer is called {', '.join(missing) or '?'}; there are {present}")
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in layers.items():
            parent, _, last = name.rpartition(".")
            if last not in targets:
                continue
            if isinstance(layer, LoRALinear):
                raise ValueError(f"{name} has an adapter already; merge it or load the model anew")
            setattr(model.get_submodule(parent), last, LoRALinear(layer, rank, alpha, dropout))
    return model


def lora_layers(model) -> dict[str, LoRALinear]:
    """The adapted layers by name.

    Raises:
        ValueError: there are none.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    if not found:
        raise ValueError("the model has no adapters; add_lora puts them there")
    return found


def lora_parameters(model) -> dict[str, nn.Parameter]:
    """The trainable matrices by name: ``…q_proj.lora_a`` and ``…q_proj.lora_b``."""
    return {
        f"{name}.{part}": getattr(layer, part)
        for name, layer in lora_layers(model).items()
        for part in ("lora_a", "lora_b")
    }


@contextmanager
def adapters_disabled(model):
    """Within the block the model is the frozen one: DPO's reference, without a second copy.

    Whatever happens inside, each adapter is afterwards as it was. Training inside would leave the
    adapters where they are: nothing of the loss depends on them.
    """
    layers = lora_layers(model).values()
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield model
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def merge_lora(model):
    """Replace each adapted layer by one plain layer that computes the same, in place.

    4-bit weights are unpacked, since the update fits none of their sixteen levels: the model grows
    to its full size. What was replaced is kept for :func:`unmerge_lora`.

    Returns:
        The model. Its answers differ from before by rounding alone.
    """
    for name, layer in lora_layers(model).items():
        merged = layer.merged_linear()
        merged.__dict__["unmerged"] = layer  # not a submodule: no part of the model's state
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, merged)
        _untie(model, layer, merged)
    return model


def unmerge_lora(model):
    """Undo :func:`merge_lora`: the very layers and adapters that were there before. In place."""
    merged = {n: m for n, m in model.named_modules() if "unmerged" in m.__dict__}
    if not merged:
        raise ValueError("the model has no merged layers; merge_lora makes them")
    for name, linear in merged.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, linear.__dict__["unmerged"])
        if linear.__dict__.get("was_tied"):
            model.config.tie_word_embeddings = True
    return model


def _untie(model, layer, merged) -> None:
    """An output layer that shared the embedding's weight has its own now; say so in the config."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    weight = getattr(layer.base, "weight", None)
    if embedding is not None and weight is getattr(embedding, "weight", None):
        merged.__dict__["was_tied"] = True
        if hasattr(model, "config"):
            model.config.tie_word_embeddings = False
