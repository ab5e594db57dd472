"""What comes out of a box: a growing stream of bytes, cut into frames within limits.

Leaves out: where the stream comes from.
"""

import dataclasses

from autograder import wire

__all__ = ["Inbox", "Reply"]

MAX_REPLY = 96 << 20            # bytes of all frames of one reply together
@dataclasses.dataclass
class Reply:
    """What a box sent, and how it ended: ``exit``, ``signal``, ``timeout``, ``flood`` or
    ``failed``.
    """

    frames: list
    ending: dict

    def find(self, key: str):
        """The first frame's value under ``key``, or None."""
        return next((f[key] for f in self.frames if isinstance(f, dict) and key in f), None)

    def has(self, key: str) -> bool:
        return any(isinstance(f, dict) and key in f for f in self.frames)


class Inbox:
    """Cuts a growing stream of bytes into frames; refuses what is beyond the limits."""

    def __init__(self):
        self.data, self.total, self.frames, self.bad = bytearray(), 0, [], False

    def feed(self, part: bytes) -> None:
        self.total += len(part)
        self.data += part
        self.bad = self.bad or self.total > MAX_REPLY
        while not self.bad and len(self.data) >= wire.HEADER.size:
            magic, text, blob = wire.HEADER.unpack_from(self.data)
            size = wire.HEADER.size + text + blob
            if magic != wire.MAGIC or size > wire.MAX_FRAME or len(self.frames) > 10_000:
                self.bad = True
            elif len(self.data) < size:
                return
            else:
                try:
                    self.frames.append(wire.unpack(bytes(self.data[:size])))
                except wire.BadFrame:
                    self.bad = True
                del self.data[:size]
