"""Who is on a GPU: which of its processes are offline jobs', which belong to a declared online workload, and the rest.

A process that nobody knows is taken for an online one, and named: it is somebody's, and protecting it is the safe
mistake. The process ids of NVML are those of the host, so whoever asks must live in the host's PID namespace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from muxflow_device.processes import names_within, owner_of
from muxflow_device.readings.look import GpuProcess

RUN_ID_VARIABLE: Final = b"MUXFLOW_RUN_ID"
"""The executor sets it for every process of an attempt."""

_SHIM: Final = "muxflow-shim"
"""What the executor's shim calls itself. It works in the directory of its attempt, named as everywhere on the node."""
_MPS_SERVER: Final = "nvidia-cuda-mps-server"
_GENERATIONS: Final = 64
"""How far up a process's ancestors are asked: more than any tree that is no loop of reused ids."""


class Side(Enum):
    """On which side a process is."""

    OFFLINE = "offline"
    ONLINE = "online"
    UNKNOWN = "unknown"
    """Counts as online."""
    SERVER = "server"
    """An MPS server: it works for its clients of either side."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process with a context on the GPU."""

    pid: int
    name: str
    side: Side
    memory_bytes: int | None
    owner: int = 0
    """Its name for good: see `muxflow_device.processes`. 0 when it has gone already."""
    within: frozenset[int] = frozenset()
    """What it calls itself in a PID namespace of its own; empty in ours, and for a process of no job."""
    job: str | None = None
    """The attempt that it descends from, by the name of its directory; null for a process of no shim."""


class Crowd(msgspec.Struct, frozen=True):
    """All processes with a context on one GPU."""

    processes: tuple[Process, ...]

    def on(self, *sides: Side) -> tuple[Process, ...]:
        """Give those on these sides."""
        return tuple(process for process in self.processes if process.side in sides)

    @property
    def others(self) -> tuple[Process, ...]:
        """Everybody who is not ours, and whose work therefore counts as the online side's."""
        return self.on(Side.ONLINE, Side.UNKNOWN)

    @property
    def complete(self) -> bool:
        """Whether all who can launch work are in it: an MPS server without a client in sight may hide some."""
        return not self.on(Side.SERVER) or len(self.on(Side.SERVER)) < len(self.processes)


class ProcessTable:
    """Sorts the processes of one GPU; remembers what does not change while a process lives."""

    def __init__(self, is_online: Callable[[str], bool]) -> None:
        """`is_online` tells the processes of the declared workload by their command line."""
        self._is_online = is_online
        self._known: dict[int, Process] = {}
        """By owner; those that have gone by their bare id."""

    def forget(self) -> None:
        """Ask about everybody again: what is declared has changed."""
        self._known.clear()

    def sort(self, processes: Iterable[GpuProcess], *, offline: Collection[int]) -> Crowd:
        """Put each on its side. `offline` are the owners of slots in job pages."""
        known = {}
        for process in processes:
            owner = owner_of(process.pid)
            before = self._known.get(owner) if owner else self._last_of(process.pid)
            if before is None or before.side is Side.UNKNOWN:
                before = self._look(process.pid, owner, offline)
            known[owner or process.pid] = replace(before, memory_bytes=process.memory_bytes)
        self._known = known
        return Crowd(tuple(known.values()))

    def _last_of(self, pid: int) -> Process | None:
        """Who had this id: NVML lists a process that has ended for a moment, and nothing else tells whose it was."""
        return next((process for process in self._known.values() if process.pid == pid), None)

    def _look(self, pid: int, owner: int, offline: Collection[int]) -> Process:
        command = _command_line(pid)
        name = Path(command.partition(" ")[0]).name or f"process {pid}"
        lineage = tuple(_lineage(pid))
        job = _job_of(lineage)
        if name == _MPS_SERVER:
            side = Side.SERVER
        elif job is not None or any(_is_marked(ancestor) for ancestor in lineage):
            side = Side.OFFLINE
        elif self._is_online(command):
            side = Side.ONLINE
        elif any(ancestor in offline for ancestor in lineage):
            side = Side.OFFLINE  # last, since a slot says whatever the job wants
        else:
            side = Side.UNKNOWN
        within = names_within(pid) if job is not None else frozenset()
        return Process(pid=pid, name=name, side=side, memory_bytes=None, owner=owner, within=within, job=job)


def _job_of(lineage: tuple[int, ...]) -> str | None:
    """Find the attempt that a process belongs to, whatever it has done to its environment: its shim stays above it.

    The uppermost shim counts: one below it is a job's own idea.
    """
    for ancestor in reversed(lineage):
        if _read(ancestor, "comm").strip() == _SHIM.encode():
            with contextlib.suppress(OSError):
                return Path(f"/proc/{ancestor}/cwd").readlink().name
    return None


def _lineage(pid: int) -> Iterator[int]:
    """Go through a process and its ancestors."""
    for _ in range(_GENERATIONS):
        if pid <= 1:
            return
        yield pid
        pid = _parent(pid)


def _is_marked(pid: int) -> bool:
    return any(entry.startswith(RUN_ID_VARIABLE + b"=") for entry in _read(pid, "environ").split(b"\0"))


def _command_line(pid: int) -> str:
    return _read(pid, "cmdline").rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if len(fields) > 1 else 0


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/<pid>/stat from the state on: the name before them may hold anything."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def _read(pid: int, name: str) -> bytes:
    with contextlib.suppress(OSError):  # gone, or somebody else's
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""
