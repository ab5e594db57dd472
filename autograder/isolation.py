"""Walls around student code: limits, another user, namespaces. Linux gives all, others what they
have.

Four plans, strongest first; the zygote takes the first that works here:

``root``  own namespaces (processes, mounts, network, IPC) and a uid of its own
``user``  the same namespaces, made without privileges; the uid stays, the file system is read-only
``uid``   a uid of its own, nothing else (a container's root without the right to make namespaces)
``none``  the same user; limits only

Where there are no namespaces, Landlock takes files, TCP and signals away if the kernel has it.

Leaves out: seccomp and cgroups. For marks that matter put a container around the whole.
"""

import ctypes
import os
import signal
import sys
import time

from autograder.landlock import confine

__all__ = ["LEVELS", "PLANS", "drop_to_guest", "enter", "guest_uid", "limit", "set_death_signal"]

PLANS = ("root", "user", "uid", "none")
LEVELS = {
    "root": (2, "own user, own process, file and network namespaces"),
    "user": (2, "own process, file and network namespaces (same user, read-only file system)"),
    "uid": (1, "own user; the network is not cut off"),
    "none": (0, "same user: stops hangs, memory, crashes and tricks within the language, no more"),
    "spawn": (0, "same user, a new process each time; limits only where the system has them"),
}
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
SYS_MOUNT_SETATTR = 442
GUEST_UIDS = (62000, 3000)      # a range that Debian and systemd leave free
MAX_PROCESSES = 32
MAX_FILE_MB = 32


def _libc():
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments) -> None:
    if getattr(_libc(), name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def set_death_signal() -> None:
    """Die with the parent; adopt the orphans of one's descendants."""
    if sys.platform == "linux":
        _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def enter(plan: str, scratch: str, hide) -> None:
    """Make the namespaces of ``plan``; afterwards the next child is process 1 of its own world.

    The file system is read-only but for ``scratch``, which is empty and small; every path in
    ``hide`` is an empty folder or an empty file.
    """
    if plan not in ("root", "user"):
        return
    uid, gid = os.getuid(), os.getgid()
    flags = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS
    _call("unshare", flags | (NEWUSER if plan == "user" else 0))
    if plan == "user":
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    if plan == "root":
        _open_ways(scratch)
    for path in hide:
        _hide(path)
    _read_only()
    _call(
        "mount",
        b"tmpfs",
        scratch.encode(),
        b"tmpfs",
        MS_NOSUID | MS_NODEV,
        b"size=64m,nr_inodes=4096,mode=777",
    )


def needed_folders() -> list[str]:
    """Where this Python and its libraries lie."""
    folders = {sys.base_prefix, *(os.path.realpath(path) for path in sys.path)}
    return sorted(path for path in folders if os.path.isdir(path))


def _open_ways(scratch: str) -> None:
    """Let another user reach Python where it lies in a closed home, and nothing else.

    The closed folder is covered by an empty one in which only the needed folders reappear.
    """
    behind: dict[str, list[str]] = {}
    for folder in needed_folders():
        parts = folder.split("/")
        above = ["/".join(parts[:n]) or "/" for n in range(1, len(parts))]
        closed = next((path for path in above if not os.stat(path).st_mode & 0o001), None)
        if closed:
            behind.setdefault(closed, []).append(folder)
    for closed, folders in behind.items():
        aside = []
        _call("mount", b"tmpfs", scratch.encode(), b"tmpfs", 0, b"size=64k,mode=755")
        for number, folder in enumerate(folders):
            aside.append(os.path.join(scratch, str(number)))
            os.mkdir(aside[-1])
            _call("mount", os.fsencode(folder), aside[-1].encode(), None, MS_BIND | MS_REC, None)
        _call("mount", b"tmpfs", os.fsencode(closed), b"tmpfs", 0, b"size=64k,mode=755")
        for place, folder in zip(aside, folders, strict=True):
            os.makedirs(folder, exist_ok=True)
            if not os.listdir(folder):
                _call("mount", place.encode(), os.fsencode(folder), None, MS_BIND | MS_REC, None)


def _hide(path: str) -> None:
    if os.path.isdir(path):
        _call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", 0, b"size=4k,mode=755")
    elif os.path.exists(path):
        _call("mount", b"/dev/null", os.fsencode(path), None, MS_BIND, None)


def _read_only() -> None:
    """The whole tree read-only (Linux 5.12 and later); devices such as /dev/null can still be
    written.
    """

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]

    wanted = Attributes(1, 0, 0, 0)
    at_fdcwd, recursive = -100, 0x8000
    result = _libc().syscall(
        SYS_MOUNT_SETATTR, at_fdcwd, b"/", recursive, ctypes.byref(wanted), ctypes.sizeof(wanted)
    )
    if result != 0:
        raise OSError(ctypes.get_errno(), "mount_setattr")


def mount_proc() -> None:
    """A ``/proc`` that shows this world's processes only; an empty one where that is not allowed.
    """
    try:
        _call("mount", b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV, None)
    except OSError:
        _call("mount", b"tmpfs", b"/proc", b"tmpfs", 0, b"size=4k")


def guest_uid() -> int:
    """The uid of a guest whose warden is this process."""
    first, count = GUEST_UIDS
    return first + os.getpid() % count


def drop_to_guest(plan: str, uid: int, scratch: str, hide=()) -> None:
    """Give up every privilege, for good. Called in the child that will run student code."""
    readable = needed_folders()
    if plan in ("root", "uid"):
        os.chown(scratch, uid, uid)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if sys.platform == "linux":
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if plan == "user":
        _drop_capabilities()
    if plan in ("uid", "none"):
        confine(readable, hide, scratch)


def _drop_capabilities() -> None:
    for capability in range(64):
        _libc().prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def limit(seconds: float, memory_mb: int) -> None:
    """Resource limits of this process and its children, as far as the system has them."""
    try:
        import resource
    except ImportError:                                     # Windows
        return
    cpu = max(1, int(time.process_time() + seconds + 0.999))
    wanted = {
        "RLIMIT_CPU": (cpu, cpu + 1),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_FSIZE": (MAX_FILE_MB << 20,) * 2,
        "RLIMIT_NOFILE": (256, 256),
        "RLIMIT_NPROC": (_processes_now() + MAX_PROCESSES,) * 2,
    }
    now = _memory_now()
    if now:
        data, total = now
        wanted["RLIMIT_DATA"] = (data + (memory_mb << 20),) * 2
        wanted["RLIMIT_AS"] = (total + (memory_mb << 20) + (768 << 20),) * 2
    for name, pair in wanted.items():
        if hasattr(resource, name):
            try:
                resource.setrlimit(getattr(resource, name), pair)
            except (ValueError, OSError):
                continue                                    # a harder limit is in force already


def _memory_now() -> tuple[int, int] | None:
    """Bytes of data and of address space that this process has taken."""
    try:
        with open("/proc/self/statm") as file:
            fields = file.read().split()
    except (OSError, IndexError):
        return None
    page = os.sysconf("SC_PAGE_SIZE")
    return int(fields[5]) * page, int(fields[0]) * page


def _processes_now() -> int:
    """How many processes and threads this user has: the limit counts all of them."""
    count, uid = 0, os.getuid()
    try:
        for pid in os.listdir("/proc"):
            if pid.isdigit() and os.stat(f"/proc/{pid}").st_uid == uid:
                count += len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        pass
    return count
