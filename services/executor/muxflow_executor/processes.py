"""What the kernel says about processes: are they alive, whose are they, which signals do they handle."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from muxflow_executor.attempts import ProcessRecord
from muxflow_executor.shim import records
from muxflow_executor.shim.descendants import below

RUN_ID: Final = "MUXFLOW_RUN_ID"
"""Environment variable that marks every process of an attempt."""

_PROC: Final = Path("/proc")
_DEAD_STATES: Final = frozenset({"Z", "X"})


def alive(process: ProcessRecord) -> bool:
    """Whether this very process still runs: not a later one with its number, not one that only waits to be reaped."""
    if process.boot_id != records.boot_id():
        return False
    try:
        fields = records.stat_fields(process.pid)
    except OSError:
        return False
    return int(fields[19]) == process.start_ticks and fields[0] not in _DEAD_STATES


def send(process: ProcessRecord, number: int) -> bool:
    """Send a signal to this very process; False when it has ended."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if not alive(process):
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal; the default action would end it."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return False
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(mask, 16) >> (number - 1) & 1)


def signal_number(name: str) -> int:
    """Give the number of ``SIGUSR2`` or ``SIGRTMIN+3``. ValueError for no such signal."""
    base, _, offset = name.partition("+")
    try:
        return signal.Signals[base] + int(offset or 0)
    except KeyError:
        raise ValueError(f"no such signal: {name}") from None


def find_shim(directory: Path) -> ProcessRecord | None:
    """Find the shim of an attempt whose ``shim.json`` cannot be read: it has made the directory its own."""
    for pid in _pids():
        with contextlib.suppress(OSError):
            if _name(pid) == "muxflow-shim" and (_PROC / str(pid) / "cwd").samefile(directory):
                return ProcessRecord(**records.identity(pid))
    return None


def below_shim(shim_pid: int) -> set[int]:
    """Find every living process of an attempt whose shim lives: whatever they do, they descend from it."""
    return {pid for pid in below(shim_pid) if _name(pid) != "muxflow-guard"}


def kill_leftovers(*, run_id: str, program: ProcessRecord | None, cgroup: str | None) -> None:
    """SIGKILL whatever is left of an attempt whose shim is dead; returns when nothing is.

    Its processes are known by their cgroup, by the mark in their environment, or by their session. The kernel gives a
    session's number to nobody else while the session has members, so only a new leader could mislead us: its start
    time tells. Processes that we may not kill are left.
    """
    pause_s = 0.001
    while True:
        if cgroup is not None:
            with contextlib.suppress(OSError):
                (Path(cgroup) / "cgroup.kill").write_text("1")
        left = [pid for pid in _belonging(run_id, program) if _kill(pid)]
        if not left and not _populated(cgroup):
            break
        time.sleep(pause_s)
        pause_s = min(0.1, pause_s * 2)
    if cgroup is not None:
        with contextlib.suppress(OSError):
            Path(cgroup).rmdir()


def _belonging(run_id: str, program: ProcessRecord | None) -> Iterator[int]:
    session = program.pid if program is not None and _leads_or_gone(program) else None
    for pid in _pids():
        with contextlib.suppress(OSError):
            fields = records.stat_fields(pid)
            if fields[0] not in _DEAD_STATES and (int(fields[3]) == session or _marked(pid, run_id)):
                yield pid


def _name(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def _marked(pid: int, run_id: str) -> bool:
    if not run_id:
        return False
    return f"{RUN_ID}={run_id}".encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")


def _leads_or_gone(program: ProcessRecord) -> bool:
    try:
        return int(records.stat_fields(program.pid)[19]) == program.start_ticks
    except OSError:
        return True


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass
    return True


def _populated(cgroup: str | None) -> bool:
    if cgroup is None:
        return False
    try:
        return "populated 1" in (Path(cgroup) / "cgroup.events").read_text()
    except OSError:
        return False


def _pids() -> Iterator[int]:
    for path in _PROC.iterdir():
        if path.name.isdigit():
            yield int(path.name)
