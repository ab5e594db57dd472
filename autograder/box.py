"""What happens inside the box: the student's definitions are run and the probes gather evidence.

Everything here runs beside student code, so nothing here decides anything. Each reply is one frame: first
``ready`` (written before any student code has run), then one a case, then ``end``. What is written may be
forged by the student; the judge takes it for evidence and no more.

Leaves out: walls (``isolation.py``), reading files (``reading.py``), verdicts (``judge.py``).
"""

import functools
import io
import os
import random
import sys
import traceback
import types

from autograder import isolation, wire

__all__ = ["live"]

MAX_STDOUT = 20_000
MAX_FRAMES_SHOWN = 8


class CappedText(io.TextIOBase):
    """Standard output that keeps its first characters and forgets the rest."""

    def __init__(self):
        self.parts, self.left = [], MAX_STDOUT

    def writable(self):
        return True

    def write(self, text):
        if self.left > 0:
            self.parts.append(str(text)[: self.left])
            self.left -= len(self.parts[-1])
        return len(text)

    def fileno(self):
        return 1


def live(request: dict, reply: int, scratch: str) -> None:
    """Run one request and end the process. Never returns."""
    exit_now, write, kill, me = os._exit, os.write, os.kill, os.getpid()
    reply, output = _seclude(reply, scratch)

    def send(tree):
        data = memoryview(wire.pack(tree))
        while data:
            data = data[write(reply, data) :]

    try:
        isolation.limit(request["seconds"], request["memory_mb"])
        if request["job"] == "trial":
            _trial(request["reach"])
        send({"ready": True})
        if request["job"] == "read":
            _read(request, send)
        elif request["job"] == "probe":
            _probe(request, send)
        send({"end": True, "stdout": "".join(output.parts)})
    except BaseException as error:
        send({"memory": True} if _out_of_memory(error) else {"fault": repr(error)[:500]})
    finally:
        if request["job"] != "trial" and hasattr(os, "fork"):
            kill(me, 9)                       # no exit handler, thread or patched exit may delay the end
        exit_now(0)


def _seclude(reply: int, scratch: str):
    """An empty working directory, a bare environment, no descriptor but the reply's."""
    os.chdir(scratch)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if reply != 3:
        os.dup2(reply, 3)
    os.closerange(4, 1024)
    keep = {k: os.environ[k] for k in ("PATH", "LANG", "SYSTEMROOT", "PYTHONPATH") if k in os.environ}
    os.environ.clear()
    os.environ.update(keep, HOME=scratch, TMPDIR=scratch, MPLBACKEND="Agg", OMP_NUM_THREADS="1")
    output = CappedText()
    sys.stdin = open(os.devnull)              # noqa: SIM115 - lives as long as the process
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = output
    return 3, output


def _trial(reach) -> None:
    """Fails where this box could not even read the code that it needs."""
    for folder in reach:
        os.listdir(folder)
    with open(wire.__file__, "rb") as file:
        file.read(1)


def _read(request: dict, send) -> None:
    from autograder.cells import Cell, Unreadable, read_cells
    from autograder.reading import read_source

    cells = [Cell(*pair) for pair in request.get("cells", ())]
    for name, data in request.get("files", ()):
        try:
            cells += read_cells(data or b"", name)
        except Unreadable as error:
            send({"unreadable": f"{error}"})
    reading = read_source(cells, lambda index: send({"cell": index}), request.get("skip", ()))
    send({"reading": vars(reading)})


def _probe(request: dict, send) -> None:
    from autograder.exercises import plain_probe

    sources = Sources(request)
    student = sources.run("__main__", request["statements"])
    for name, statements in request.get("stand_ins", {}).items():
        student[name] = sources.stand_in(name, statements)
    if request["name"] not in student:
        send({"undefined": sources.failures[-1] if sources.failures else None})
        return
    answer = types.SimpleNamespace(**{k: v for k, v in student.items() if k.isidentifier()})
    for probe in request["probes"]:
        if probe["statements"]:
            function = sources.run(f"probe_{probe['name']}", probe["statements"])[probe["name"]]
        else:
            function = functools.partial(plain_probe, request["name"])
        for index, case in enumerate(request["cases"]):
            send({"probe": probe["name"], "case": index, **_one(function, answer, case, index, sources)})


def _one(function, answer, case, index, sources) -> dict:
    """The evidence of one probe on one case, or the error that came instead."""
    from autograder.evidence import copies

    seed_all(index)
    try:
        return {"tree": function(answer, copies(case))}
    except BaseException as error:
        if _out_of_memory(error):
            return {"memory": True}
        return {"error": sources.describe(error)}


def seed_all(index: int) -> None:
    """The same random numbers for the reference and for the student's function."""
    import numpy
    import torch

    torch.manual_seed(7_000 + index)
    numpy.random.seed(7_000 + index)
    random.seed(7_000 + index)


def _out_of_memory(error) -> bool:
    if isinstance(error, MemoryError):
        return True
    text = str(error) if type(error) is RuntimeError else ""
    return "can't allocate memory" in text or "not enough memory" in text or "std::bad_alloc" in text


class Sources:
    """Runs statements in namespaces, and turns tracebacks into the student's own lines."""

    def __init__(self, request):
        self.name = request["name"]
        self.dropped = dict(request.get("dropped", {}))
        self.lines: dict[str, dict[int, str]] = {}          # the student's, by cell and line
        self.failures: list[dict] = []
        self.failed: dict[str, dict] = {}                   # a name, and why it could not be defined

    def run(self, name: str, statements) -> dict:
        """Run each statement; one that fails is remembered and costs only what it defines."""
        module = types.ModuleType(name)
        module.__file__ = None
        sys.modules[name] = module
        for statement in statements:
            if name == "__main__":
                self._remember(statement)
            try:
                # Whatever the padding: line numbers in tracebacks are those of the cell.
                source = "\n" * (statement["line"] - 1) + statement["source"]
                exec(compile(source, statement["label"], "exec"), vars(module))
            except BaseException as error:
                if _out_of_memory(error):
                    raise
                self.failures.append(self.describe(error))
                for defined in statement["defines"]:
                    if statement["kind"] == "value":
                        self.dropped.setdefault(defined, statement["label"])
                    elif name == "__main__":
                        self.failed[defined] = self.failures[-1]
        return vars(module)

    def stand_in(self, name, source):
        """The reference of an earlier exercise: by path, or as source text."""
        from autograder.exercises import resolve

        return resolve(source) if isinstance(source, str) else self.run(f"stand_in_{name}", source)[name]

    def _remember(self, statement) -> None:
        lines = self.lines.setdefault(statement["label"], {})
        for offset, line in enumerate(statement["source"].split("\n")):
            lines[statement["line"] + offset] = line

    def describe(self, error) -> dict:
        """The kind and message of an error, and the frames that stand in the student's cells."""
        kind = type.__getattribute__(type(error), "__name__")
        try:
            message = str(error)[:600]
        except BaseException:
            message = ""
        frames = []
        for frame, line in traceback.walk_tb(error.__traceback__):
            label = frame.f_code.co_filename
            if label in self.lines:
                frames.append([label, line, frame.f_code.co_name, self.lines[label].get(line, "").strip()])
        if isinstance(error, SyntaxError) and error.filename in self.lines:
            frames.append([error.filename, error.lineno or 0, "", (error.text or "").strip()])
        stub = type(error) is NotImplementedError and bool(frames) and "NotImplementedError" in frames[-1][3]
        shown = frames if len(frames) <= MAX_FRAMES_SHOWN else [*frames[:2], *frames[2 - MAX_FRAMES_SHOWN :]]
        described = {"kind": kind, "message": message, "frames": shown, "stub": stub}
        if isinstance(error, NameError) and not isinstance(error, UnboundLocalError):
            name = getattr(error, "name", None)
            if type(name) is not str:
                return described
            described |= {"name": name, "set_in": self.dropped.get(name)}
            return self.failed.get(name, described)
        return described
