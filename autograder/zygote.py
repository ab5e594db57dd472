"""The process that imports torch once and forks a box for each question. It runs no student code.

For each request it forks a *warden*, which makes the namespaces, takes the answer away and forks
the guest (``box.py``); the warden waits, ends the guest at the time limit, and leaves nothing alive
that the guest started. Replies go from the guest straight to the judge through a pipe that came
with the request.

Leaves out: systems without fork or AF_UNIX; there ``spawn.py`` starts a whole process each time.
"""

import array
import gc
import json
import os
import shutil
import signal
import socket
import tempfile

from autograder import isolation, wire
from autograder.warden import end_descendants, preload, warden, write_all

__all__ = ["main"]


def main(descriptor: int, settings: dict) -> None:
    """Serve requests from the socket ``descriptor`` until the judge closes it."""
    import torch

    torch.set_num_threads(1)
    isolation.set_death_signal()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the judge, which closes the socket
    control = socket.socket(fileno=descriptor)
    preload(settings.get("preload", ()))
    gc.collect()
    gc.freeze()
    plan = _choose(settings)
    _say(control, {"plan": plan})
    while True:
        head, descriptors = _receive(control)
        if not head:
            return
        request = head + wire._read_exactly(control.recv, int.from_bytes(head, "big"))
        if not descriptors:  # a request without a pipe: modules to import
            preload(wire.unpack(request[8:])["preload"])
            _say(control, {"preloaded": True})
            continue
        ending = _serve(request[8:], descriptors[0], plan, settings)
        _say(control, ending)


def _say(control, message: dict) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


def _receive(control):
    """The eight bytes that open a request, and the pipe that came with them."""
    size = array.array("i").itemsize
    head, ancillary, _, _ = control.recvmsg(8, socket.CMSG_SPACE(size))
    if head and len(head) < 8:
        head += wire._read_exactly(control.recv, 8 - len(head))
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % size])
    return head, list(found)


def _choose(settings: dict) -> str:
    """The strongest plan that works here: tried, not guessed."""
    wanted = settings.get("plan", "auto")
    for plan in isolation.PLANS if wanted == "auto" else (wanted,):
        fits = (plan in ("root", "uid")) == (os.getuid() == 0)
        if fits or wanted != "auto" or plan == "none":
            reader, writer = os.pipe()
            trial = {
                "job": "trial",
                "seconds": 5,
                "memory_mb": 512,
                "reach": isolation.needed_folders(),
            }
            ending = _serve(wire.pack(trial), writer, plan, settings)
            with os.fdopen(reader, "rb") as file:
                answered = b"ready" in file.read(100_000)
            if answered and ending == {"end": "exit", "code": 0}:
                return plan
    return "none"


def _serve(data: bytes, reply: int, plan: str, settings: dict) -> dict:
    """One request: fork the warden, wait for it, report how its guest ended."""
    report, report_writer = os.pipe()
    scratch = tempfile.mkdtemp(prefix="box-")
    pid = os.fork()
    if pid == 0:
        try:
            os.close(report)
            warden(data, reply, report_writer, plan, scratch, settings)
        except BaseException as error:
            write_all(
                report_writer, json.dumps({"end": "failed", "why": repr(error)[:500]}).encode()
            )
        finally:
            os._exit(0)
    os.close(report_writer)
    os.close(reply)
    with os.fdopen(report, "rb") as file:
        text = file.read(10_000)
    os.waitpid(pid, 0)
    end_descendants()
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        return json.loads(text)
    except ValueError:
        return {"end": "signal", "signal": 9, "why": "the warden was killed"}
