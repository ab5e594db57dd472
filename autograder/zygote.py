"""The process that imports torch once and forks a box for each question. It runs no student code.

For each request it forks a *warden*, which makes the namespaces, takes the answer away and forks the guest
(``box.py``); the warden waits, ends the guest at the time limit, and leaves nothing alive that the guest
started. Replies go from the guest straight to the judge through a pipe that came with the request.

Leaves out: systems without fork or AF_UNIX; there ``spawn.py`` starts a whole process each time.
"""

import array
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time

from autograder import isolation, wire
from autograder.box import live
from autograder.take_away import files_of, take_away

__all__ = ["main"]


def main(descriptor: int, settings: dict) -> None:
    """Serve requests from the socket ``descriptor`` until the judge closes it."""
    import torch

    torch.set_num_threads(1)
    isolation.set_death_signal()
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is for the judge, which closes the socket
    control = socket.socket(fileno=descriptor)
    _preload(settings.get("preload", ()))
    gc.collect()
    gc.freeze()
    plan = _choose(settings)
    _say(control, {"plan": plan})
    while True:
        head, descriptors = _receive(control)
        if not head:
            return
        request = head + wire._read_exactly(control.recv, int.from_bytes(head, "big"))
        if not descriptors:                              # a request without a pipe: modules to import
            _preload(wire.unpack(request[8:])["preload"])
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


def _preload(modules) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"autograder: {name} cannot be imported: {error!r}", file=sys.stderr)


def _choose(settings: dict) -> str:
    """The strongest plan that works here: tried, not guessed."""
    wanted = settings.get("plan", "auto")
    for plan in isolation.PLANS if wanted == "auto" else (wanted,):
        if (plan in ("root", "uid")) == (os.getuid() == 0) or plan == "none":
            reader, writer = os.pipe()
            trial = {"job": "trial", "seconds": 5, "memory_mb": 512, "reach": isolation.needed_folders()}
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
            _warden(data, reply, report_writer, plan, scratch, settings)
        except BaseException as error:
            _write_all(report_writer, json.dumps({"end": "failed", "why": repr(error)[:500]}).encode())
        finally:
            os._exit(0)
    os.close(report_writer)
    os.close(reply)
    with os.fdopen(report, "rb") as file:
        text = file.read(10_000)
    os.waitpid(pid, 0)
    _end_descendants()
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        return json.loads(text)
    except ValueError:
        return {"end": "signal", "signal": 9, "why": "the warden was killed"}


def _warden(data, reply, report, plan, scratch, settings) -> None:
    """Make the walls, fork the guest, wait, clean up, report."""
    isolation.set_death_signal()
    request = wire.unpack(data)
    names = [*request.get("take", ()), *settings.get("take", ())]
    _preload(request.get("preload", ()))
    hide = [*settings.get("hide", ()), *files_of(names)]
    for name in names:
        take_away(name)
    uid = isolation.guest_uid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    isolation.enter(plan, scratch, hide)
    spaces = plan in ("root", "user")
    pid = os.fork()
    if pid == 0:
        os.close(report)
        if spaces:
            _first_process(request, reply, plan, uid, scratch)
        _guest(request, reply, plan, uid, scratch)
    os.close(reply)
    ending = _wait(pid, wall_limit(request["seconds"]), request["seconds"])
    if plan == "uid":
        _end_user(uid)
    _end_descendants()
    _write_all(report, json.dumps(ending).encode())


def wall_limit(seconds: float) -> float:
    """How long a guest may live that may compute for ``seconds``: waiting for a busy machine is no fault."""
    return 2 * seconds + 2


def _first_process(request, reply, plan, uid, scratch) -> None:
    """Process 1 of the guest's world: forks the guest, passes its end on; when it ends, all end."""
    isolation.set_death_signal()
    isolation.mount_proc()
    pid = os.fork()
    if pid == 0:
        _guest(request, reply, plan, uid, scratch)
    os.close(reply)
    while True:
        ended, status, usage = os.wait4(-1, 0)
        if ended == pid:
            break
    if _out_of_time(status, usage, request["seconds"]):
        os._exit(100)
    os._exit(0 if os.WIFEXITED(status) and not os.WEXITSTATUS(status) else _as_code(status))


def _out_of_time(status: int, usage, seconds: float) -> bool:
    """Whether the limit on computing time ended it: by its signal, or by a kill when time was up."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return True
    return usage.ru_utime + usage.ru_stime >= 0.95 * seconds


def _as_code(status: int) -> int:
    """A wait status in one exit code: 1 to 90 as they are, signals from 101 on."""
    return 100 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else min(os.WEXITSTATUS(status), 90)


def _guest(request, reply, plan, uid, scratch) -> None:
    """The last step before student code: the signals and the user are the guest's from here on."""
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        isolation.drop_to_guest(plan, uid, scratch)
        live(request, reply, scratch)
    finally:
        os._exit(70)


def _wait(pid: int, wall: float, cpu: float) -> dict:
    """How the guest (or its process 1) ended; killed where it has not by the time limit."""
    deadline = time.monotonic() + wall
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        left = deadline - time.monotonic()
        if left <= 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return {"end": "timeout"}
        signal.sigtimedwait({signal.SIGCHLD}, min(left, 1.0))
    code = os.waitstatus_to_exitcode(status)
    if code == 100 or _out_of_time(status, usage, cpu):
        return {"end": "timeout"}
    if code < 0 or code > 100:
        return {"end": "signal", "signal": -code if code < 0 else code - 100}
    return {"end": "exit", "code": code}


def _end_user(uid: int) -> None:
    """Kill whatever runs as ``uid``."""
    pid = os.fork()
    if pid == 0:
        os.setresuid(uid, uid, uid)
        os.kill(-1, signal.SIGKILL)
        os._exit(0)
    os.waitpid(pid, 0)


def _end_descendants() -> None:
    """Kill every descendant; orphans have become our children, since we adopt them."""
    for _ in range(50):
        children = _children(os.getpid())
        if not children:
            return
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                continue


def _children(parent: int) -> list[int]:
    try:
        with open(f"/proc/self/task/{parent}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []           # no /proc: what the guest started must be found by its user alone


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
