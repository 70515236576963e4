"""What becomes of a job that breaks a rule: the monitor finds it, and writes it down for the evictor."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import structlog

from muxflow.attempts import attempt_from_name
from muxflow.contracts import Attempt
from muxflow_decisions.device.conduct import Breach, ConductMemory, ConductPolicy, JobSight, advance
from muxflow_device.breaches import Broken, write_breaches
from muxflow_device.rundir import DeviceDirectory

log = structlog.get_logger()

_RETRY_NS: Final = 1_000_000_000


class Conduct:
    """The conduct of the jobs on one GPU, look by look. Used by its thread alone."""

    def __init__(self, directory: DeviceDirectory, policy: ConductPolicy) -> None:
        """Begin with nobody accused: what an earlier monitor has found is found again. Raises OSError."""
        self._directory = directory
        self._policy = policy
        self._memory = ConductMemory()
        self._found: dict[str, Broken | None] = {}
        """By the attempt's directory; null for one that nobody can be told of."""
        self._written: tuple[Broken, ...] = ()
        self._again_ns = 0
        self._silent: set[str] = set()
        directory.create()
        write_breaches(directory, ())

    def take(self, jobs: tuple[JobSight, ...], *, now_ns: int) -> None:
        """Take in one look; tell the evictor when somebody is to be stopped."""
        self._note_silence(jobs)
        self._memory = advance(self._memory, jobs, now_ns=now_ns, policy=self._policy)
        breaches = self._memory.breaches
        self._found = {
            breach.job: self._found[breach.job] if breach.job in self._found else _broken(breach) for breach in breaches
        }
        told = tuple(broken for broken in self._found.values() if broken is not None)
        if told == self._written or now_ns < self._again_ns:
            return
        try:
            write_breaches(self._directory, told)
            self._written = told
        except OSError as error:
            self._again_ns = now_ns + _RETRY_NS
            log.error("the evictor cannot be told of a breach, trying again", error=str(error))  # noqa: TRY400

    def _note_silence(self, jobs: Iterable[JobSight]) -> None:
        """Say of each job once that its memory is not compared with its quota: the driver does not tell it."""
        silent = {job.job for job in jobs if any(resident.memory_bytes is None for resident in job.residents)}
        for job in silent - self._silent:
            log.warning("the driver tells no memory of its processes; what they load is not counted", attempt=job)
        self._silent = silent


def _broken(breach: Breach) -> Broken | None:
    attempt: Attempt | None = attempt_from_name(breach.job)
    log.error("a job breaks a rule", attempt=breach.job, cause=breach.cause)
    if attempt is None:
        log.error("it cannot be stopped: its names are too long for its directory's", attempt=breach.job)
        return None
    return Broken(attempt=attempt, cause=breach.cause, decided_ns=time.time_ns())
