"""Stands between the zygote and one guest: makes the walls, keeps the time, leaves nothing alive.

The guest is forked twice removed: where there are namespaces, its parent is process 1 of a world of
its own, and when that ends the system ends everything in it. Elsewhere the warden adopts what the
guest leaves behind and kills it.

Leaves out: what the guest does (``box.py``).
"""

import importlib
import json
import os
import resource
import signal
import sys
import time

from autograder import isolation, wire
from autograder.box import live
from autograder.take_away import files_of, take_away

__all__ = ["end_descendants", "preload", "warden", "write_all"]


def preload(modules) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            print(f"autograder: {name} cannot be imported: {error!r}", file=sys.stderr)


def warden(data, reply, report, plan, scratch, settings) -> None:
    """Make the walls, fork the guest, wait, clean up, report."""
    isolation.set_death_signal()
    request = wire.unpack(data)
    names = [*request.get("take", ()), *settings.get("take", ())]
    preload(request.get("preload", ()))
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
            _first_process(request, reply, plan, uid, scratch, hide)
        _guest(request, reply, plan, uid, scratch, hide)
    os.close(reply)
    watch = (lambda: _memory_taken(uid, spaces)) if plan != "none" else (lambda: 0)
    ending = _wait(pid, request["seconds"], watch, 2 * request["memory_mb"] << 20)
    if plan == "uid":
        _end_user(uid)
    end_descendants()
    write_all(report, json.dumps(ending).encode())


def wall_limit(seconds: float) -> float:
    """How long a guest may live that may compute for ``seconds``: waiting for a busy machine is no
    fault.
    """
    return 2 * seconds + 2


def _first_process(request, reply, plan, uid, scratch, hide) -> None:
    """Process 1 of the guest's world: forks the guest, passes its end on; when it ends, all end."""
    isolation.set_death_signal()
    isolation.mount_proc()
    pid = os.fork()
    if pid == 0:
        _guest(request, reply, plan, uid, scratch, hide)
    os.close(reply)
    while True:
        ended, status, usage = os.wait4(-1, 0)
        if ended == pid:
            break
    if _out_of_time(status, usage, request["seconds"]):
        os._exit(100)
    os._exit(0 if os.WIFEXITED(status) and not os.WEXITSTATUS(status) else _as_code(status))


def _out_of_time(status: int, usage, seconds: float) -> bool:
    """Whether the limit on computing time ended it: by its signal, or by a kill when time was up.
    """
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return True
    return usage.ru_utime + usage.ru_stime >= 0.95 * seconds


def _as_code(status: int) -> int:
    """A wait status in one exit code: 1 to 90 as they are, signals from 101 on."""
    return 100 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else min(os.WEXITSTATUS(status), 90)


def _guest(request, reply, plan, uid, scratch, hide) -> None:
    """The last step before student code: the signals and the user are the guest's from here on."""
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        isolation.drop_to_guest(plan, uid, scratch, hide)
        live(request, reply, scratch)
    finally:
        os._exit(70)


def _wait(pid: int, cpu: float, memory_taken, most: int) -> dict:
    """How the guest (or its process 1) ended; killed where it has not in time, or takes too much.
    """
    deadline = time.monotonic() + wall_limit(cpu)
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        left = deadline - time.monotonic()
        if left <= 0 or memory_taken() > most:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return {"end": "timeout" if left <= 0 else "memory"}
        signal.sigtimedwait({signal.SIGCHLD}, min(left, 0.2))
    code = os.waitstatus_to_exitcode(status)
    if code == 100 or _out_of_time(status, usage, cpu):
        return {"end": "timeout"}
    if code < 0 or code > 100:
        return {"end": "signal", "signal": -code if code < 0 else code - 100}
    return {"end": "exit", "code": code}


def _memory_taken(uid: int, spaces: bool) -> int:
    """Bytes that the guest's processes have together, beyond what each has from its birth.

    The limits of the system count each process by itself; this is for many that share the work. In
    a world of its own ``/proc`` shows the guest's processes only, elsewhere they are known by their
    user.
    """
    if spaces and os.path.exists("/proc/self"):
        return 0                                # not yet its own /proc: this one shows us as well
    birth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if spaces or entry.stat().st_uid == uid:
                with open(f"/proc/{entry.name}/statm") as file:
                    resident = int(file.read().split()[1]) * page
                total += max(0, resident - birth)
        except (OSError, IndexError):
            continue
    return total


def _end_user(uid: int) -> None:
    """Kill whatever runs as ``uid``."""
    pid = os.fork()
    if pid == 0:
        os.setresuid(uid, uid, uid)
        os.kill(-1, signal.SIGKILL)
        os._exit(0)
    os.waitpid(pid, 0)


def end_descendants() -> None:
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


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
