"""What travels between the judge and the box: trees of plain data, as JSON and safetensors.

A tree is made of ``None``, bool, int, float, str, bytes, tensors, lists, tuples, sets, dictionaries
and dataclass instances. Types are looked at exactly: a subclass that lies about itself is never
asked anything, it arrives as :class:`Other`, which equals nothing. Nothing is ever unpickled.

Leaves out: compression, streaming of one tree, any type that would need code to be read back.
"""

import json
import struct

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from autograder.trees import BadFrame, Other, Packer, Record, Unpacker

__all__ = ["BadFrame", "Other", "Record", "frame", "pack", "read_frame", "unpack"]

MAGIC = b"AG01"
HEADER = struct.Struct(">4sII")
MAX_FRAME = 64 << 20  # bytes; the largest honest reply of the course is some hundred kilobytes
def pack(tree) -> bytes:
    """One tree as the bytes of one frame.

    >>> unpack(pack({"loss": torch.tensor(0.5), "steps": [1, 2]}))
    {'loss': tensor(0.5000), 'steps': [1, 2]}
    """
    packer = Packer()
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
        return Unpacker(tensors).unpack(json.loads(text))
    except BadFrame:
        raise
    except Exception as error:
        raise BadFrame(f"{type(error).__name__}: {str(error)[:200]}") from None


def read_frame(read, limit: int = MAX_FRAME) -> bytes | None:
    """The bytes of the next frame from ``read(n)``; None where the stream ends before one begins.
    """
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
