"""What travels between the judge and the box: trees of plain data, as JSON and safetensors.

A tree is made of ``None``, bool, int, float, str, bytes, tensors, lists, tuples, sets, dictionaries and
dataclass instances. Types are looked at exactly: a subclass that lies about itself is never asked
anything, it arrives as :class:`Other`, which equals nothing. Nothing is ever unpickled.

Leaves out: compression, streaming of one tree, any type that would need code to be read back.
"""

import dataclasses
import json
import struct

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

__all__ = ["BadFrame", "Other", "Record", "frame", "pack", "read_frame", "unpack"]

MAGIC = b"AG01"
HEADER = struct.Struct(">4sII")
MAX_FRAME = 64 << 20        # bytes; the largest honest reply of the course is some hundred kilobytes
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


class _Packer:
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
        if self.bytes > MAX_FRAME // 2:
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


def pack(tree) -> bytes:
    """One tree as the bytes of one frame.

    >>> unpack(pack({"loss": torch.tensor(0.5), "steps": [1, 2]}))
    {'loss': tensor(0.5000), 'steps': [1, 2]}
    """
    packer = _Packer()
    text = json.dumps(packer.pack(tree), allow_nan=False).encode()
    blob = save_tensors(packer.tensors) if packer.tensors else b""
    return HEADER.pack(MAGIC, len(text), len(blob)) + text + blob


frame = pack


def unpack(data: bytes):
    """The tree of one frame.

    Raises:
        BadFrame: anything is wrong with the bytes, whatever it is.
    """
    try:
        magic, text_size, blob_size = HEADER.unpack_from(data)
        if magic != MAGIC or len(data) != HEADER.size + text_size + blob_size:
            raise BadFrame("sizes do not add up")
        text = data[HEADER.size : HEADER.size + text_size]
        blob = data[HEADER.size + text_size :]
        tensors = load_tensors(bytes(blob)) if blob_size else {}
        return _Unpacker(tensors).unpack(json.loads(text))
    except BadFrame:
        raise
    except Exception as error:
        raise BadFrame(f"{type(error).__name__}: {str(error)[:200]}") from None


class _Unpacker:
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


def read_frame(read, limit: int = MAX_FRAME) -> bytes | None:
    """The bytes of the next frame from ``read(n)``; None where the stream ends before one begins."""
    head = _read_exactly(read, HEADER.size)
    if not head:
        return None
    magic, text_size, blob_size = HEADER.unpack(head) if len(head) == HEADER.size else (b"", 0, 0)
    if magic != MAGIC or text_size + blob_size > limit:
        raise BadFrame("not a frame, or one beyond the limit")
    body = _read_exactly(read, text_size + blob_size)
    if len(body) != text_size + blob_size:
        raise BadFrame("the stream ended inside a frame")
    return head + body


def _read_exactly(read, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        part = read(min(missing, 1 << 20))
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
