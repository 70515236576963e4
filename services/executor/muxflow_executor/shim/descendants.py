"""Everything below the shim: orphans stay there because it is their subreaper, and in a cgroup where permitted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from typing import Final

from muxflow_executor.shim.records import stat_fields

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_SYS_CLONE3: Final = 435  # the same on every architecture
_CLONE_INTO_CGROUP: Final = 0x2_0000_0000
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc_with_gil: Final = ctypes.PyDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, however they were started."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have the kernel SIGKILL this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def be_called(name: str) -> None:
    """Show this name, of at most 15 bytes, in lists of processes."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def end_all(cgroup: str | None) -> None:
    """Kill what is left and wait until it has ended."""
    pause_s = 0.001
    while _some_left() and kill_all(cgroup):
        time.sleep(pause_s)
        pause_s = min(0.1, pause_s * 2)


def kill_all(cgroup: str | None) -> bool:
    """SIGKILL every process below this one; False when there is none that we may kill."""
    kill_cgroup(cgroup)
    found = False
    for pid in below(os.getpid()):
        try:
            os.kill(pid, signal.SIGKILL)
            found = True
        except ProcessLookupError:
            found = True  # it may have had children
        except PermissionError:  # a set-user-ID program: only its owner may end it
            continue
    return found


def kill_cgroup(cgroup: str | None) -> None:
    """SIGKILL everything in the attempt's cgroup, where it has one."""
    if cgroup is not None:
        with contextlib.suppress(OSError), open(f"{cgroup}/cgroup.kill", "w", encoding="ascii") as file:
            file.write("1")


def below(root: int) -> list[int]:
    """Find the living processes below `root`, at any depth."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = stat_fields(int(name))[:2]
                if state not in {"Z", "X"}:
                    children.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    pending = [root]
    while pending:
        children_here = children.get(pending.pop(), [])
        found += children_here
        pending += children_here
    return found


def make_cgroup(cgroup: str | None) -> None:
    if cgroup is not None:
        with contextlib.suppress(OSError):
            os.makedirs(cgroup, exist_ok=True)


def fork_into(cgroup: str | None) -> int:
    """Fork, with the child in the attempt's cgroup where there is one. Returns as `os.fork` does."""
    if cgroup is None:
        return os.fork()
    try:
        return _clone_into(cgroup)
    except OSError:  # an old kernel, or a sandbox that forbids clone3
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError), open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")
        return pid


def _clone_into(cgroup: str) -> int:
    """Fork by clone3: moving a process that exists between cgroups waits for an RCU grace period, some 15 ms.

    Python does not know that it was forked. The child may therefore only call the kernel, and exec.
    """
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        arguments = (ctypes.c_uint64 * 11)()
        arguments[0], arguments[4], arguments[10] = _CLONE_INTO_CGROUP, signal.SIGCHLD, directory
        pid: int = _libc_with_gil.syscall(_SYS_CLONE3, arguments, ctypes.c_size_t(ctypes.sizeof(arguments)))
    finally:
        os.close(directory)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    return pid


def remove_cgroup(cgroup: str | None) -> None:
    if cgroup is not None:
        with contextlib.suppress(OSError):
            os.rmdir(cgroup)


def oom_kills(cgroup: str | None) -> int | None:
    """How many processes of the attempt the OOM killer ended; None without a memory controller to ask."""
    try:
        with open(f"{cgroup}/memory.events", encoding="ascii") as file:
            events = dict(line.split() for line in file)
    except OSError:
        return None
    return int(events.get("oom_kill", 0))


def wait_any() -> tuple[int, int]:
    """Collect one ended child: its pid and wait status, or (0, 0) when none has ended."""
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0


def _some_left() -> bool:
    """Collect what has ended; False when this process has no child, and so no descendant, any more."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
