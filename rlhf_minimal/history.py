"""What a training loop records: rows of numbers that survive a Ctrl-C.

Every loop of the package returns a :class:`History`. Give it a path and the rows are on disk too,
at most ten seconds behind, and complete when the loop ends, fails or is interrupted.

Leaves out: dashboards, remote logging, images. One JSON file is enough to redraw a figure.
"""

import json
import math
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

__all__ = ["History", "progress", "stop_softly", "write_json"]


def write_json(path, data) -> Path:
    """Write ``data`` as JSON so that a reader sees the old file or the new one, never half of one.

    NaN and infinities become ``null``: strict JSON has no word for them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(_jsonable(data), indent=1, allow_nan=False)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)
    return path


def _jsonable(value):
    """Plain Python data for ``json``: one-element tensors and numpy numbers become floats."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def progress(steps, label: str, show: bool = True):
    """A tqdm bar over ``range(steps)`` (or any iterable); silent when ``show`` is false."""
    from tqdm.auto import tqdm

    iterable = range(steps) if isinstance(steps, int) else steps
    options = dict(leave=False, dynamic_ncols=True, mininterval=0.5)
    return tqdm(iterable, desc=label, disable=not show, **options)


class History:
    """Rows of numbers, one a training step, and a few facts about the whole run.

    Args:
        path: where to keep the rows as JSON; ``None`` keeps them in memory only.
        facts: what holds for the whole run (seed, hyper-parameters), saved beside the rows.

    Use it as a context manager around a loop: whatever ends the loop, the file is written, and
    ``interrupted`` says whether it was a Ctrl-C (which goes on to the caller).

    >>> history = History(seed=0)
    >>> with history:
    ...     for step in range(3):
    ...         history.record(step=step, loss=1.0 / (step + 1))
    >>> history["loss"]
    [1.0, 0.5, 0.3333333333333333]
    >>> len(history), history.mean("loss", last=2)
    (3, 0.41666666666666663)
    """

    save_every_s = 10.0

    def __init__(self, path=None, **facts):
        self.path = Path(path) if path is not None else None
        self.facts = facts
        self.rows: list[dict] = []
        self.interrupted = False
        self._saved_at = 0.0

    def record(self, **numbers) -> None:
        """Add one row. Tensors of one element become Python numbers."""
        row = {k: v.item() if hasattr(v, "item") else v for k, v in numbers.items()}
        self.rows.append(row)
        if self.path is not None and time.monotonic() - self._saved_at > self.save_every_s:
            self.save()

    def __getitem__(self, name: str) -> list:
        """The column ``name``, from the rows that have it."""
        column = [row[name] for row in self.rows if name in row]
        if not column:
            known = sorted({key for row in self.rows for key in row})
            raise KeyError(f"no column {name!r} in this history; it has {known}")
        return column

    def __len__(self) -> int:
        return len(self.rows)

    def mean(self, name: str, last: int | None = None) -> float:
        """Mean of a column, or of its ``last`` entries."""
        column = self[name][-last:] if last else self[name]
        return sum(column) / len(column)

    def save(self, path=None) -> Path:
        """Write ``{"facts": ..., "interrupted": ..., "rows": [...]}`` as JSON; returns the path."""
        target = Path(path) if path is not None else self.path
        if target is None:
            raise ValueError("this history has no path; pass one: history.save('history.json')")
        data = {"facts": self.facts, "interrupted": self.interrupted, "rows": self.rows}
        self._saved_at = time.monotonic()
        return write_json(target, data)

    @classmethod
    def load(cls, path) -> "History":
        """Read what :meth:`save` wrote."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            rows, facts = data["rows"], data["facts"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a history file: {error!r}") from error
        history = cls(path, **facts)
        history.rows, history.interrupted = rows, data.get("interrupted", False)
        return history

    def __enter__(self) -> "History":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        if self.path is not None:
            self.save()


class Stop:
    """Whether somebody has asked a loop to stop."""

    asked = False


@contextmanager
def stop_softly():
    """Within the block Ctrl-C and SIGTERM only ask; a second one stops at once.

    A loop that looks at ``asked`` between two steps can save a state that holds whole steps only.
    """
    stop, before = Stop(), {}

    def ask(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, ask)
        except ValueError:  # only the main thread may; elsewhere the default stays
            break
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
