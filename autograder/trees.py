"""Trees of plain data, taken apart for JSON and put together again; types are looked at exactly.

A subclass that lies about itself is never asked anything: it arrives as :class:`Other`, which
equals nothing.

Leaves out: bytes on a pipe (``wire.py``).
"""

import dataclasses
import json

import torch

__all__ = ["BadFrame", "Other", "Packer", "Record", "Unpacker"]

MAX_BYTES = 32 << 20
MAX_NODES = 200_000
MAX_DEPTH = 24
MAX_TEXT = 200_000
PLAIN_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
}
class BadFrame(ValueError):
    """The bytes are no frame of ours, or one beyond the limits."""


@dataclasses.dataclass(frozen=True)
class Other:
    """A value that cannot travel, known by the name of its type only."""

    type_name: str


@dataclasses.dataclass
class Record:
    """A dataclass instance, taken apart: the name of its type and its fields."""

    type_name: str
    fields: dict


class Packer:
    def __init__(self):
        self.tensors: dict[str, torch.Tensor] = {}
        self.nodes = 0
        self.bytes = 0

    def pack(self, value, depth=0):
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            return ["other", "a structure too large to send"]
        kind = type(value)
        if value is None:
            return ["none"]
        if kind is bool:
            return ["bool", value]
        if kind is int:
            return ["int", str(value)] if value.bit_length() < 4096 else ["other", "a huge int"]
        if kind is float:
            return ["float", repr(value)]
        if kind is str:
            return ["str", value[:MAX_TEXT].encode("utf-8", "replace").decode()]
        if kind is bytes:
            return self.tensor(torch.frombuffer(bytearray(value), dtype=torch.uint8), "bytes") \
                if value else ["str", ""]
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            return self.tensor(value)
        return self.container(value, kind, depth + 1)

    def container(self, value, kind, depth):
        if kind is list or kind is tuple:
            return [kind.__name__, [self.pack(item, depth) for item in value]]
        if kind in (set, frozenset):
            packed = [self.pack(item, depth) for item in value]
            return ["set", sorted(packed, key=json.dumps)]
        if issubclass(kind, dict):
            pairs = dict.items(value)
            return ["dict", [[self.pack(k, depth), self.pack(v, depth)] for k, v in pairs]]
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return ["tuple", [self.pack(item, depth) for item in tuple.__iter__(value)]]
        if kind.__module__ == "numpy":
            return self.numpy(value, kind)
        if isinstance(value, (Other, Record)):
            return self.again(value, depth)
        if dataclasses.is_dataclass(kind):
            fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(kind)}
            return ["record", _type_name(kind), self.pack(fields, depth)[1]]
        return ["other", _type_name(kind)]

    def again(self, value, depth):
        """Something that has travelled before, sent on as it is."""
        if type(value) is Other:
            return ["other", value.type_name]
        return ["record", value.type_name, self.pack(value.fields, depth)[1]]

    def numpy(self, value, kind):
        name = kind.__name__
        if name in ("bool", "bool_"):
            return ["bool", bool(value)]
        if name.startswith(("float", "int", "uint")) and not hasattr(value, "__len__"):
            return self.pack(value.item())
        return ["other", f"numpy.{name}"]

    def tensor(self, value, tag="tensor"):
        value = value.detach()
        self.bytes += value.numel() * value.element_size()
        if self.bytes > MAX_BYTES:
            return ["other", f"a tensor too large to send, of shape {tuple(value.shape)}"]
        if value.layout is not torch.strided or value.dtype not in PLAIN_DTYPES:
            return ["other", f"a tensor of {value.dtype}, {value.layout}"]
        if value.device.type != "cpu":
            return ["other", f"a tensor on {value.device}"]
        key = str(len(self.tensors))
        self.tensors[key] = value.contiguous().clone()
        return [tag, key]


def _type_name(kind) -> str:
    name = type.__getattribute__(kind, "__name__")
    return name[:200] if type(name) is str else "?"


class Unpacker:
    def __init__(self, tensors):
        self.tensors = tensors
        self.nodes = 0

    def unpack(self, node, depth=0):
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH + 2 or type(node) is not list or not node:
            raise BadFrame("not a tree")
        tag, *rest = node
        if type(tag) is not str:
            raise BadFrame("not a tag")
        if tag == "none":
            return None
        value = rest[0]
        if tag in ("list", "tuple", "set"):
            items = [self.unpack(item, depth + 1) for item in _exactly(list, value)]
            return items if tag == "list" else tuple(items) if tag == "tuple" else ("set", *items)
        if tag == "dict":
            return self.pairs(value, depth)
        if tag == "record":
            return Record(_exactly(str, value), self.pairs(rest[1], depth))
        return self.leaf(tag, value)

    def pairs(self, pairs, depth):
        result = {}
        for pair in _exactly(list, pairs):
            key, value = pair
            result[self.unpack(key, depth + 1)] = self.unpack(value, depth + 1)
        return result

    def leaf(self, tag, value):
        if tag == "bool":
            return _exactly(bool, value)
        text = _exactly(str, value)
        if tag == "int":
            return int(text)
        if tag == "float":
            return float(text)
        if tag == "str":
            return text
        if tag == "other":
            return Other(text[:300])
        if tag == "tensor":
            return self.tensors[text].clone()
        if tag == "bytes":
            return self.tensors[text].numpy().tobytes()
        raise BadFrame(f"unknown tag {tag[:20]!r}")


def _exactly(kind, value):
    if type(value) is not kind:
        raise BadFrame(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value
