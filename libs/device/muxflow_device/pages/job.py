"""The job page: what the processes of a job say of themselves. Nobody trusts it, and nobody maps it but xCUDA."""

from __future__ import annotations

import os
import time
from ctypes import sizeof
from struct import Struct
from typing import Final, NamedTuple, Self

import msgspec

from muxflow.contracts.event import Bytes, Count
from muxflow_device.pages.errors import PageError
from muxflow_device.pages.file import SHARED, check, create, open_for_reading
from muxflow_device.pages.layout import JOB_SLOTS, PAGE_BYTES, PageKind, RawJobPage, RawProcessSlot
from muxflow_device.processes import lives, pid_of
from muxflow_device.rundir import JobDirectory

COUNT_MAX: Final = 1 << 53
"""More than any counter of a job reaches, and what an event can carry."""
MEMORY_BYTES_MAX: Final = 1 << 42
"""More than any GPU has; and that of all slots of many jobs together is still what an event can carry."""

_OWNERS: Final = Struct(f"<{f'Q{sizeof(RawProcessSlot) - 8}x' * JOB_SLOTS}")
"""The owners alone: most slots are free, and a look at all of each would take most of the time."""

_CLOSED: Final = -1

_SLACK_NS: Final = 100_000_000
"""Processes publish up to 20 ms late, and are read a little apart from the clock."""
_FUTURE_NS: Final = 1_000_000_000
_INFLATION_PERMILLE_MAX: Final = 1_000_000


class ProcessSlot(msgspec.Struct, frozen=True, kw_only=True):
    """What one process says of itself.

    The pid too is what the job says: whoever acts on it makes sure first that the process is one of the job's.
    """

    pid: int
    owner: int
    """The process's name for good: see `muxflow_device.processes`."""
    launches: Count
    busy_ns: Count
    """Device time in which at least one operation of this process ran."""
    throttled_ns: Count
    frozen_ns: Count
    memory_bytes: Bytes
    refused_bytes: Bytes
    inflight_ns: Count
    """Estimated device time of what is launched and not known to be complete."""
    inflight: Count
    drained: bool
    """Nothing is in flight, and nothing more will be launched."""
    gate_epoch: int
    """The device gate's epoch that was last obeyed."""
    inflation_permille: int | None = None
    """Kernel time against each function's own baseline; 1000: as ever."""
    error: int | None = None
    """First sticky CUDA error."""
    error_call: int | None = None
    """Index of the call in xCUDA's table of hooks."""
    error_boottime_ns: int | None = None
    updated_boottime_ns: int | None = None
    """When it said all this, by CLOCK_BOOTTIME."""


class JobUsage(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a job, as far as it is to be believed."""

    processes: tuple[ProcessSlot, ...]
    """Those that live."""
    ended: tuple[ProcessSlot, ...]
    """Last words of those that do not, until another process takes the slot."""

    # Totals over all processes, ended ones too, that this reader has seen growing. They never fall.
    launches: int
    busy_ns: int
    throttled_ns: int
    frozen_ns: int
    refused_bytes: int

    problems: tuple[str, ...] = ()
    """What was not believed, in words for people: a page that was truncated, counters that make no sense."""

    @property
    def memory_bytes(self) -> int:
        """Device memory that live processes hold."""
        return sum(process.memory_bytes for process in self.processes)

    @property
    def inflight(self) -> int:
        """Operations that live processes have launched and do not know to be complete."""
        return sum(process.inflight for process in self.processes)

    @property
    def inflight_ns(self) -> int:
        """Their estimated device time, as if they ran one after the other."""
        return sum(process.inflight_ns for process in self.processes)

    @property
    def drained(self) -> bool:
        """Whether every live process says that nothing of it is or will be on the device."""
        return all(process.drained for process in self.processes)


class _Counters(NamedTuple):
    launches: int = 0
    busy_ns: int = 0
    throttled_ns: int = 0
    frozen_ns: int = 0
    refused_bytes: int = 0


class JobPage:
    """A reader of one job page: with bounded preads, and with a memory, so that counters can only grow."""

    def __init__(self, directory: JobDirectory, *, memory_bytes_max: int = MEMORY_BYTES_MAX) -> None:
        """Open the page; `memory_bytes_max` is what the device has. Raises PageError when it is not there, OSError."""
        self.path = directory.job_page
        self._memory_bytes_max = memory_bytes_max
        self._fd = open_for_reading(self.path)
        self._seen: dict[tuple[int, int], _Counters] = {}
        self._total = _Counters()
        self._read_ns: int | None = None

    @classmethod
    def create(cls, directory: JobDirectory, *, gpu: str, owner: tuple[int, int] | None = None) -> None:
        """Make the page, for the job's user and group to write; None: ours. Keeps one that is there. Raises OSError."""
        directory.create()
        create(directory.job_page, RawJobPage(), kind=PageKind.JOB, uuid=gpu, mode=SHARED, owner=owner)

    def read(self, *, now_boottime_ns: int | None = None) -> JobUsage:
        """Look at all processes. Never fails for what the page holds: that is among the problems."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) if now_boottime_ns is None else now_boottime_ns
        problems: list[str] = []
        alive: list[ProcessSlot] = []
        ended: list[ProcessSlot] = []
        seen: dict[tuple[int, int], _Counters] = {}
        for position, raw in self._slots(problems):
            key = position, raw.owner
            before = self._seen.get(key, _Counters())
            doubts = _Doubts(pid_of(raw.owner), problems)
            busy_ns_max = now_ns if self._read_ns is None else now_ns - self._read_ns + _SLACK_NS
            counters = _grown(before, raw, busy_ns_max, doubts)
            seen[key] = counters
            self._total = _Counters(
                *(
                    min(total + after - was, COUNT_MAX)
                    for total, after, was in zip(self._total, counters, before, strict=True)
                )
            )
            slot = self._believed(raw, counters, now_ns, doubts)
            (alive if lives(raw.owner) else ended).append(slot)
        if not problems or seen:  # a page that cannot be read keeps what was known of it
            self._seen = seen
            self._read_ns = now_ns
        return JobUsage(processes=tuple(alive), ended=tuple(ended), problems=tuple(problems), **self._total._asdict())

    def _slots(self, problems: list[str]) -> list[tuple[int, RawProcessSlot]]:
        """Copy the slots that are taken, each process once."""
        try:
            check(self._fd, PageKind.JOB, self.path)
        except PageError as error:
            problems.append(str(error))
            return []
        raw = os.pread(self._fd, PAGE_BYTES[PageKind.JOB], 0)
        if len(raw) < sizeof(RawJobPage):
            problems.append(f"{self.path} was truncated while it was read")
            return []
        taken: dict[int, tuple[int, RawProcessSlot]] = {}
        for position, owner in enumerate(_OWNERS.unpack_from(raw, RawJobPage.slots.offset)):
            if owner in taken:
                problems.append(f"pid {pid_of(owner)} has two slots")
            elif owner:
                offset = RawJobPage.slots.offset + position * sizeof(RawProcessSlot)
                taken[owner] = position, RawProcessSlot.from_buffer_copy(raw, offset)
        return list(taken.values())

    def _believed(self, raw: RawProcessSlot, counters: _Counters, now_ns: int, doubts: _Doubts) -> ProcessSlot:
        updated_ns = raw.updated_boottime_ns
        if not 0 <= updated_ns <= now_ns + _FUTURE_NS:
            doubts.add("says that it will write in the future, or wrote before the boot")
            updated_ns = 0
        failed_ns = raw.last_error_boottime_ns
        if not 0 <= failed_ns <= now_ns + _FUTURE_NS:
            doubts.add("says that it will fail in the future, or failed before the boot")
            failed_ns = 0
        if raw.drained > 1:
            doubts.add(f"says {raw.drained} where only yes or no can be")
        failed = raw.last_error != 0
        inflation = raw.inflation_permille
        return ProcessSlot(
            pid=pid_of(raw.owner),
            owner=raw.owner,
            memory_bytes=doubts.clipped("memory_bytes", raw.memory_bytes, self._memory_bytes_max),
            inflight_ns=doubts.clipped("inflight_ns", raw.inflight_ns, COUNT_MAX),
            inflight=raw.inflight,
            drained=raw.drained == 1,
            gate_epoch=raw.gate_epoch,
            inflation_permille=inflation if 0 < inflation <= _INFLATION_PERMILLE_MAX else None,
            error=raw.last_error if failed else None,
            error_call=raw.last_error_call if failed else None,
            error_boottime_ns=failed_ns or None if failed else None,
            updated_boottime_ns=updated_ns or None,
            **counters._asdict(),
        )

    def close(self) -> None:
        """Let the page go; there is no look at it afterwards."""
        fd, self._fd = self._fd, _CLOSED
        if fd != _CLOSED:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Doubts:
    """What is not believed of one process."""

    def __init__(self, pid: int, problems: list[str]) -> None:
        self._pid = pid
        self._problems = problems

    def add(self, what: str) -> None:
        self._problems.append(f"pid {self._pid} {what}")

    def clipped(self, name: str, value: int, most: int) -> int:
        if value > most:
            self.add(f"says {name} = {value}; at most {most} can be")
        return min(value, most)


def _grown(before: _Counters, raw: RawProcessSlot, busy_ns_max: int, doubts: _Doubts) -> _Counters:
    """Take over what has grown, as far as it can have: no process is busy for longer than time has passed."""
    grown = []
    for name, was in zip(before._fields, before, strict=True):
        value = getattr(raw, name)
        most = was + max(busy_ns_max, 0) if name == "busy_ns" else COUNT_MAX
        if value < was:
            doubts.add(f"says {name} = {value} after {was}")
        grown.append(max(was, doubts.clipped(name, value, most)))
    return _Counters(*grown)
