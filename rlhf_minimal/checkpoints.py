"""What a run leaves on disk: adapters, a merged model, and the state from which it can go on.

Every file appears whole or not at all: it is written beside its place, then moved there.

Leaves out: keeping several states, and formats other than safetensors and torch's own.
"""

import copy
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rlhf_minimal.history import write_json
from rlhf_minimal.lora import LoRALinear, lora_layers, lora_parameters, unpacked_weight

__all__ = [
    "load_lora",
    "read_state",
    "restore_state",
    "save_lora",
    "save_merged",
    "save_state",
]


def _facts(model) -> dict[str, str]:
    layers = lora_layers(model).items()
    return {name: f"{layer.rank} {float(layer.alpha)}" for name, layer in layers}


def save_lora(model, path, write: bool = True) -> None:
    """Write the adapters, and nothing else, as safetensors, with rank and scale beside each.

    Args:
        write: false in all processes of a run but one; all have to call where weights are sharded.
    """
    whole = _whole(lora_parameters(model))
    tensors = {name: value.cpu().contiguous() for name, value in whole.items()}
    if write:
        _replace(path, lambda beside: save_file(tensors, beside, metadata=_facts(model)))


@torch.no_grad()
def load_lora(model, path) -> None:
    """Read adapters into a model that has the same ones.

    Raises:
        ValueError: layers, ranks or scales differ; the message names the first.
    """
    wanted = lora_parameters(model)
    with safe_open(path, framework="pt") as file:
        differing = sorted(set(wanted) ^ set(file.keys()))
        if differing:
            raise ValueError(f"{path} and the model do not have the same adapters: {differing[0]}")
        saved = file.metadata() or {}
        for name, fact in _facts(model).items():
            if saved.get(name) != fact:
                raise ValueError(
                    f"{name} has rank and alpha {saved.get(name)} in {path} and {fact} in the model"
                )
        for name, parameter in wanted.items():
            parameter.copy_(file.get_tensor(name))


def save_merged(
    model, tokenizer, folder, dtype=None, shard_bytes: int = 2 * 10**9, write: bool = True
) -> None:
    """Write W + (α/r)·B·A as a plain checkpoint that transformers loads, a few layers at a time.

    A 7B model in 16 bits is 14.5 GB, more than the GPU that trained its adapters has left and more
    than Colab's main memory. So it never stands whole anywhere but on the disk.

    Args:
        dtype: of the weights; the model's own by default.
        shard_bytes: size of one file, and about what is in memory at once.
        write: false in all processes of a run but one; all have to call where weights are sharded.
    """
    folder, dtype = Path(folder), dtype or model.dtype
    shard, places, total = {}, {}, 0

    def write_shard():
        name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        _replace(folder / name, lambda path: save_file(shard, path, metadata={"format": "pt"}))
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    if write:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").unlink(missing_ok=True)  # would be read in place of ours
    for name, tensor in _merged_tensors(model, dtype):
        if not write:
            continue
        shard[name], total = tensor, total + tensor.nbytes
        if sum(each.nbytes for each in shard.values()) >= shard_bytes:
            write_shard()
    if not write:
        return
    if shard:
        write_shard()
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)
    _merged_config(model, places, dtype).save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def _merged_tensors(model, dtype):
    """Names and values of the plain model, one at a time, on the CPU; a shared tensor once."""
    seen, inside = set(), ()
    for prefix, module in model.named_modules():
        if inside and prefix.startswith(inside):
            continue
        if isinstance(module, LoRALinear):
            inside, own = (*inside, f"{prefix}."), module.merged_linear().state_dict()
        elif (weight := unpacked_weight(module)) is not None:
            own = {"weight": weight} | ({} if module.bias is None else {"bias": module.bias})
        else:
            own = _own_tensors(module, seen)
        for name, tensor in own.items():
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            whole = _whole(tensor).to("cpu", kind).contiguous()
            yield f"{prefix}.{name}".lstrip("."), whole


def _own_tensors(module, seen: set) -> dict:
    """Parameters and saved buffers of the module itself, without those that another one has too."""
    own = dict(module.named_parameters(recurse=False))
    skip = module._non_persistent_buffers_set
    own |= {n: b for n, b in module.named_buffers(recurse=False) if n not in skip}
    fresh = {name: tensor for name, tensor in own.items() if id(tensor) not in seen}
    seen.update(map(id, own.values()))
    return fresh


def _merged_config(model, names, dtype):
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = dtype
    if "lm_head.weight" in names:
        config.tie_word_embeddings = False
    return config


def save_state(path, engine, history, settings: dict, **kept) -> None:
    """Write all that the rest of a run depends on: weights, optimizer, scale, randomness, rows.

    Every process of a run has to call it; the first one writes.

    Args:
        settings: plain values that must be the same when the run goes on.
        kept: tensors and plain values to have again, such as the reference's log-probabilities.
    """
    trained = {n: p for n, p in engine.policy.named_parameters() if p.requires_grad}
    state = {
        "settings": settings,
        "kept": kept,
        "steps_done": engine.steps_done,
        "weights": _whole(trained),
        "optimizer": _whole(engine.optimizer.state_dict()),
        "scaler": engine.scaler.state_dict(),
        "randomness": engine.processes.gather(engine.randomness),
        "rows": history.rows,
    }
    if engine.processes.first:
        _replace(path, lambda beside: torch.save(state, beside))
    engine.processes.wait()


def _whole(values):
    """Nested containers with every tensor detached, and every sharded one put together."""
    if isinstance(values, dict):
        return {key: _whole(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_whole(value) for value in values]
    if isinstance(values, torch.Tensor):
        return getattr(values, "full_tensor", lambda: values)().detach()
    return values


def read_state(path, settings: dict) -> dict:
    """What :func:`save_state` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or the run it belongs to had other settings.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no run to go on with: there is no {path}; a finished one has none"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        before = state["settings"]
    except Exception as error:  # what is damaged raises what it likes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a state to go on from: {reason}") from error
    for name in sorted(before.keys() | settings.keys()):
        if before.get(name) != settings.get(name):
            raise ValueError(
                f"the interrupted run had {name} = {before.get(name)!r}, this one has "
                f"{settings.get(name)!r}; give the same, or another folder"
            )
    return state


@torch.no_grad()
def restore_state(state: dict, engine, history) -> None:
    """Put a state back: the run then goes on as if it had never stopped."""
    weights = dict(engine.policy.named_parameters())
    for name, value in state["weights"].items():
        weights[name].copy_(_spread(value, weights[name]))
    trained = [p for group in engine.optimizer.param_groups for p in group["params"]]
    for number, values in state["optimizer"]["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == trained[number].shape:
                values[name] = _spread(value, trained[number])
    engine.optimizer.load_state_dict(state["optimizer"])
    engine.scaler.load_state_dict(state["scaler"])
    engine.steps_done = state["steps_done"]
    engine.restore_randomness(state["randomness"][engine.processes.rank])
    history.rows = state["rows"]


def _spread(value, like):
    """``value`` over the processes as ``like`` is, if it is sharded."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _replace(path, write) -> None:
    """``write`` to a file beside ``path``, then put it in its place in one step."""
    path = Path(path)
    beside = path.with_name(path.name + ".partial")
    write(beside)
    os.replace(beside, path)
