"""The box where there is no fork server (macOS, Windows): a whole new process for each request.

One process stands ready in advance with torch imported, so that a student waits for the first
answer only. What limits the system has are set; for marks that matter use Linux.

Leaves out: namespaces, another user, ending what the guest has started beyond its own process
group.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

from autograder import wire
from autograder.inbox import Inbox, Reply
from autograder.isolation import LEVELS
from autograder.runner import START_S, environment, search_path
from autograder.take_away import take_away

__all__ = ["SpawnRunner", "serve_once"]

CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from autograder.spawn import serve_once
serve_once()
"""


def serve_once() -> None:
    """In the new process: one request from standard input, the replies to standard output."""
    import torch

    from autograder.box import live

    torch.set_num_threads(1)
    reply = os.dup(1)
    data = wire.read_frame(sys.stdin.buffer.read)
    if data is None:
        return
    request = wire.unpack(data)
    for name in request.get("preload", ()):
        __import__(name)
    for name in request.get("take", ()):
        take_away(name)
    live(request, reply, request["scratch"])


class SpawnRunner:
    """As ``runner.Runner``, with a process each time."""

    plan = "spawn"

    def __init__(self, preload=(), take=()):
        self.modules, self.take = list(preload), list(take)
        self.spare = self._spawn()

    level = LEVELS["spawn"][0]
    description = f"isolation level {LEVELS['spawn'][0]}: {LEVELS['spawn'][1]}"

    def greet(self) -> None:
        """Nothing to wait for."""

    def preload(self, modules) -> None:
        """Remember what each new process should import."""
        self.modules += [name for name in modules if name not in self.modules]

    def _spawn(self):
        import json

        return subprocess.Popen(
            [sys.executable, "-c", CODE, json.dumps(search_path())], env=environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=os.name != "nt",
        )

    def ask(self, request: dict) -> Reply:
        """One request to a fresh process."""
        process, self.spare = self.spare, self._spawn()
        inbox = Inbox()
        with tempfile.TemporaryDirectory(prefix="box-", ignore_cleanup_errors=True) as scratch:
            take = [*self.take, *request.get("take", ())]
            full = {**request, "scratch": scratch, "preload": self.modules, "take": take}
            threading.Thread(target=_feed, args=(process, wire.pack(full)), daemon=True).start()
            reader = threading.Thread(target=_collect, args=(process, inbox), daemon=True)
            reader.start()
            ending = _wait(process, inbox, request["seconds"])
            _end(process)
            reader.join(5)
        return Reply(inbox.frames, {"end": "flood"} if inbox.bad else ending)

    def close(self) -> None:
        """End the process that stands ready."""
        _end(self.spare)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _feed(process, data: bytes) -> None:
    try:
        process.stdin.write(data)
        process.stdin.close()
    except OSError:
        return                                  # it died before it read: the judge will see that


def _collect(process, inbox: Inbox) -> None:
    while part := os.read(process.stdout.fileno(), 1 << 16):
        if not inbox.bad:
            inbox.feed(part)


def _wait(process, inbox: Inbox, seconds: float) -> dict:
    """Until the process ends; its own time starts when it has said that it is ready."""
    deadline = time.monotonic() + START_S
    started = False
    while process.poll() is None:
        if inbox.frames and not started:
            started, deadline = True, time.monotonic() + 2 * seconds + 2
        if time.monotonic() > deadline or inbox.bad:
            return {"end": "timeout"}
        time.sleep(0.02)
    code = process.returncode
    if hasattr(signal, "SIGXCPU") and code == -signal.SIGXCPU:
        return {"end": "timeout"}
    return {"end": "exit", "code": code} if code >= 0 else {"end": "signal", "signal": -code}


def _end(process) -> None:
    """End the process and, where there are process groups, the others of its group."""
    try:
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
    for stream in (process.stdin, process.stdout):
        stream.close()
