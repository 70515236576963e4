"""The offline jobs of one GPU, as their pages in the run directory tell."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

import msgspec
import structlog

from muxflow_decisions.device.conduct import Resident
from muxflow_device.attribution.processes import Crowd, Side
from muxflow_device.pages import JobControl, JobPage, JobUsage, PageError
from muxflow_device.pages.layout import JOB_SLOTS
from muxflow_device.processes import lives
from muxflow_device.rundir import JobDirectory, RunDirectory

log = structlog.get_logger()

_SETTLED_NS: Final = 100_000_000
"""A directory that changed this recently may change again without another time stamp: the kernel's clock is coarse."""


class OfflineJob(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt on the GPU."""

    name: str
    """Name of its directory."""
    usage: JobUsage
    quota_bytes: int | None = None
    """Device memory that it may use; null: no limit."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes that have a slot."""
        return tuple(process.pid for process in self.usage.processes)


class OfflineJobs:
    """Finds the jobs of one GPU, and reads their pages; one that cannot be read counts as doing nothing."""

    def __init__(self, run: RunDirectory, uuid: str) -> None:
        self._run = run
        self._directory = os.fspath(run.path / "jobs")
        self._uuid = uuid
        self._pages: dict[str, JobPage] = {}
        self._quotas: dict[str, int | None] = {}
        self._elsewhere: set[str] = set()
        self._listed_ns = -1
        self._waiting = True
        self._doubted: set[str] = set()

    def look(self, now_ns: int) -> tuple[OfflineJob, ...]:
        """Read every page. `now_ns` is CLOCK_REALTIME, as files are stamped."""
        self._list(now_ns)
        found = tuple(
            OfflineJob(name=name, usage=page.read(), quota_bytes=self._quotas[name])
            for name, page in self._pages.items()
        )
        for job in found:
            if job.usage.problems and job.name not in self._doubted:
                self._doubted.add(job.name)
                log.warning("a job page is not believed", attempt=job.name, problems=job.usage.problems[:3])
        return found

    def close(self) -> None:
        """Let all pages go."""
        for page in self._pages.values():
            page.close()
        self._pages.clear()

    def _list(self, now_ns: int) -> None:
        """List the directory again if it has changed, or if a job in it has no pages yet."""
        try:
            changed_ns = os.stat(self._directory).st_mtime_ns  # noqa: PTH116 - ten times a second: a Path costs more
        except FileNotFoundError:
            changed_ns = 0
        if changed_ns == self._listed_ns and not self._waiting:
            return
        self._listed_ns = changed_ns if now_ns - changed_ns > _SETTLED_NS else -1
        self._waiting = False
        there = {directory.name: directory for directory in self._run.jobs()}
        for name in self._pages.keys() - there.keys():
            self._pages.pop(name).close()
            del self._quotas[name]
        self._elsewhere &= there.keys()
        self._doubted &= there.keys()
        for name in there.keys() - self._pages.keys() - self._elsewhere:
            self._open(there[name])

    def _open(self, directory: JobDirectory) -> None:
        try:
            limits = JobControl.read(directory.control_page).limits
            if limits.gpu != self._uuid:
                self._elsewhere.add(directory.name)
                return
            self._pages[directory.name] = JobPage(directory)
            self._quotas[directory.name] = limits.quota_bytes
        except (PageError, OSError):
            self._waiting = True  # the executor is about to make it, or to remove it


def worst_inflation(jobs: Iterable[OfflineJob]) -> int | None:
    """Give the worst of what processes report in thousandths, null when none of them knows."""
    reported = (process.inflation_permille for job in jobs for process in job.usage.processes)
    return max((inflation for inflation in reported if inflation is not None), default=None)


def memory_bytes(jobs: Iterable[OfflineJob], crowd: Crowd | None) -> int:
    """Add up the offline side's device memory: of each process what its slot says, or NVML if that is more.

    What bypasses every allocation call (modules, heaps, local memory) only NVML sees; a process without a context yet,
    or of a driver that tells no process's memory, only the slot.
    """
    held = {process.pid: process.memory_bytes for job in jobs for process in job.usage.processes}
    for process in crowd.on(Side.OFFLINE) if crowd is not None else ():
        held[process.pid] = max(held.get(process.pid, 0), process.memory_bytes or 0)
    return sum(held.values())


def job_memory_bytes(job: OfflineJob, crowd: Crowd | None) -> int:
    """The same of one job: its processes with a slot, and those that NVML sees below its shim."""
    held = {process.pid: process.memory_bytes for process in job.usage.processes}
    for process in crowd.on(Side.OFFLINE) if crowd is not None else ():
        if process.pid in held or process.job == job.name:
            held[process.pid] = max(held.get(process.pid, 0), process.memory_bytes or 0)
    return sum(held.values())


def residents_of(job: OfflineJob, crowd: Crowd | None) -> tuple[Resident, ...]:
    """Find the living processes of a job that have a context, with or without xCUDA.

    A page that cannot be read says nothing of who has a slot, nor does one without a free slot: then all have one.
    A process in a PID namespace of its own names itself as it is called there: to us its slot is that of one that has
    ended, or of somebody else.
    """
    held = {process.owner for process in job.usage.processes}
    named = held | {process.owner for process in job.usage.ended}
    unknown = len(held) == JOB_SLOTS or bool(job.usage.problems and not held)
    return tuple(
        Resident(
            owner=process.owner,
            pid=process.pid,
            name=process.name,
            held=unknown or process.owner in held or not process.within.isdisjoint(named),
            memory_bytes=process.memory_bytes,
        )
        for process in (crowd.processes if crowd is not None else ())
        if process.job == job.name and (process.owner in held or lives(process.owner))
    )
