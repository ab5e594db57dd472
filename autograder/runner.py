"""The judge's side of the box: starts a zygote, asks, reads replies within limits, never hangs.

``Runner`` is the fork server of Linux; elsewhere :func:`start` gives the slower runner of
``spawn.py``.

Leaves out: what the questions mean. A reply is a list of trees and the way the guest ended.
"""

import json
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
import weakref

from autograder import wire
from autograder.inbox import Inbox, Reply
from autograder.isolation import LEVELS

__all__ = ["Lost", "Runner", "start"]

START_S = 120.0
GRACE_S = 20.0  # beyond the warden's own limit, before the zygote itself is given up
CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from autograder.zygote import main
main(int(sys.argv[2]), json.loads(sys.argv[3]))
"""


class Lost(RuntimeError):
    """The zygote itself is gone or silent: our fault, not the student's."""


def environment() -> dict:
    """What a box may know of the judge's environment: where programs and libraries are."""
    names = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "HOME")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**kept, **dict.fromkeys(threads, "1"), "PYTHONIOENCODING": "utf-8"}


def search_path() -> list[str]:
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return list(dict.fromkeys([*map(os.path.abspath, sys.path), ours]))


class Runner:
    """One zygote. Use one runner a thread; :meth:`ask` is not to be called by two at once.

    Args:
        plan: ``auto``, or one of ``isolation.PLANS``.
        preload: modules of the course that every box needs.
        hide: paths that no box may read, where the plan can hide them.
        take: ``"module:attribute"`` names taken away in every box.
    """

    def __init__(self, plan="auto", preload=(), hide=(), take=()):
        hide = [str(path) for path in hide]
        self.settings = {"plan": plan, "preload": [*preload], "hide": hide, "take": [*take]}
        self.loaded = set(preload)
        self.process = None
        self.lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        arguments = [json.dumps(search_path()), str(theirs.fileno()), json.dumps(self.settings)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE, *arguments], pass_fds=[theirs.fileno()], env=environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )
        theirs.close()
        self.control, self.greeting = ours, None
        self._finalizer = weakref.finalize(self, _end, self.process, ours)

    def greet(self) -> None:
        """Wait until the zygote is ready and has said which plan works here."""
        if self.greeting is None:
            self.greeting = self._answer(time.monotonic() + START_S)

    @property
    def plan(self) -> str:
        self.greet()
        return self.greeting["plan"]

    @property
    def level(self) -> int:
        return LEVELS[self.plan][0]

    @property
    def description(self) -> str:
        """One line on the isolation that is really had."""
        level, words = LEVELS[self.plan]
        return f"isolation level {level}: {words}"

    def preload(self, modules) -> None:
        """Import modules of the course in the zygote, once, so that no box has to."""
        wanted = [name for name in modules if name not in self.loaded]
        if wanted:
            self.greet()
            self._send(wire.pack({"preload": wanted}), None)
            self._answer(time.monotonic() + START_S)
            self.loaded |= set(wanted)

    def ask(self, request: dict) -> Reply:
        """One request to a fresh box. A lost zygote is started again, once; then :class:`Lost`."""
        data = wire.pack(request)
        with self.lock:
            for attempt in (1, 2):
                try:
                    self.greet()
                    return self._ask(data, request["seconds"])
                except (OSError, Lost) as error:
                    self.close()
                    self._start()
                    if attempt == 2:
                        raise Lost(f"the zygote was lost twice: {error}") from error

    def _ask(self, data: bytes, seconds: float) -> Reply:
        reader, writer = os.pipe()
        try:
            self._send(data, writer)
        finally:
            os.close(writer)
        deadline = time.monotonic() + 2 * seconds + 2 + GRACE_S
        inbox = Inbox()
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            answer = self._collect(pipe, inbox, deadline)
        return Reply(inbox.frames, {"end": "flood"} if inbox.bad else answer)

    def _send(self, data: bytes, descriptor) -> None:
        head = len(data).to_bytes(8, "big")
        if descriptor is None:
            self.control.sendall(head)
        else:
            socket.send_fds(self.control, [head], [descriptor])
        self.control.settimeout(START_S)
        self.control.sendall(data)

    def _collect(self, pipe, inbox: Inbox, deadline: float) -> dict:
        """Frames until the zygote says that the guest and all it started are gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            selector.register(self.control, selectors.EVENT_READ)
            while time.monotonic() < deadline:
                ready = {key.fileobj for key, _ in selector.select(timeout=1.0)}
                if pipe in ready:
                    part = os.read(pipe.fileno(), 1 << 20)
                    if not part:
                        selector.unregister(pipe)
                    elif not inbox.bad:
                        inbox.feed(part)
                elif self.control in ready:
                    return self._answer(deadline)
        raise Lost("no answer in time")

    def _answer(self, deadline: float) -> dict:
        """One line of JSON from the zygote."""
        text = b""
        while not text.endswith(b"\n"):
            self.control.settimeout(max(0.1, deadline - time.monotonic()))
            part = self.control.recv(4096)
            if not part:
                raise Lost("the zygote is gone")
            text += part
        return json.loads(text)

    def close(self) -> None:
        """End the zygote and whatever still runs under it."""
        self._finalizer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _end(process, control) -> None:
    control.close()                       # the zygote ends at the end of its requests
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start(plan="auto", preload=(), hide=(), take=()):
    """The runner that this system allows."""
    if plan != "spawn" and sys.platform == "linux":
        return Runner(plan, preload, hide, take)
    from autograder.spawn import SpawnRunner

    return SpawnRunner(preload, take)
