"""Takes evidence out of a box's reply, by form alone: whoever wrote the reply may be hostile.

Leaves out: comparing (``compare.py``).
"""

__all__ = ["collect", "is_reading", "text_of"]


def collect(reply, expectation) -> dict[str, list]:
    """The evidence by probe and case; None where none came. A second answer to a case does not
    count.
    """
    found = {probe: [None] * len(expectation.cases) for probe in expectation.right}
    for frame in reply.frames:
        if not isinstance(frame, dict):
            continue
        probe, index = frame.get("probe"), frame.get("case")
        if (
            type(probe) is str
            and probe in found
            and type(index) is int
            and 0 <= index < len(found[probe])
        ):
            known = {key: frame[key] for key in ("tree", "error", "memory") if key in frame}
            if known and found[probe][index] is None and _is_error(known.get("error", {})):
                found[probe][index] = known
    return found


def _is_error(error) -> bool:
    return type(error) is dict and all(type(error.get(k, "")) is str for k in ("kind", "message"))


def is_reading(found) -> bool:
    """Whether a reply to a reading request has the form that ours have."""
    if type(found) is not dict or set(found) != {"statements", "dropped", "broken"}:
        return False
    keys = {"label": str, "line": int, "kind": str, "source": str, "defines": list, "uses": list}
    return all(
        type(s) is dict and all(type(s.get(key)) is kind for key, kind in keys.items())
        for s in found["statements"]
    )


def text_of(value) -> str:
    return value if type(value) is str else ""
