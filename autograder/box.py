"""What happens inside the box: the student's definitions are run and the probes gather evidence.

Everything here runs beside student code, so nothing here decides anything. Each reply is one frame:
first ``ready`` (written before any student code has run), then one a case, then ``end``. What is
written may be forged by the student; the judge takes it for evidence and no more.

Leaves out: walls (``isolation.py``), reading files (``reading.py``), verdicts (``judge.py``).
"""

import functools
import io
import os
import random
import sys
import types

from autograder import isolation, wire
from autograder.sources import Sources, out_of_memory

__all__ = ["live"]

MAX_STDOUT = 20_000
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
        send({"memory": True} if out_of_memory(error) else {"fault": repr(error)[:500]})
    finally:
        if request["job"] != "trial" and hasattr(os, "fork"):
            kill(me, 9)  # no exit handler, thread or patched exit may delay the end
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
    keep = {
        k: os.environ[k] for k in ("PATH", "LANG", "SYSTEMROOT", "PYTHONPATH") if k in os.environ
    }
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
    stand_ins = {
        name: sources.stand_in(name, statements)
        for name, statements in request.get("stand_ins", {}).items()
    }
    student = sources.run("__main__", request["statements"], stand_ins)
    student.update(stand_ins)
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
            send(
                {
                    "probe": probe["name"],
                    "case": index,
                    **_one(function, answer, case, index, sources),
                }
            )


def _one(function, answer, case, index, sources) -> dict:
    """The evidence of one probe on one case, or the error that came instead."""
    from autograder.evidence import copies

    seed_all(index)
    try:
        return {"tree": function(answer, copies(case))}
    except BaseException as error:
        if out_of_memory(error):
            return {"memory": True}
        return {"error": sources.describe(error)}


def seed_all(index: int) -> None:
    """The same random numbers for the reference and for the student's function."""
    import numpy
    import torch

    torch.default_generator.manual_seed(7_000 + index)  # torch.manual_seed takes 2 ms, for CUDA
    numpy.random.seed(7_000 + index)
    random.seed(7_000 + index)
