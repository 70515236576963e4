"""GPUs that are kept for a job which is on its way to them."""

from __future__ import annotations

import msgspec

from muxflow_scheduler.desired import GpuKey
from muxflow_scheduler.ledger import JobKey


class Reservation(msgspec.Struct, frozen=True):
    """One GPU, kept for one job until then."""

    job: JobKey
    until_ns: int


class Reservations:
    """One job per GPU and one GPU per job. Only in memory: a term that takes over places anew."""

    def __init__(self) -> None:
        self._of_gpu: dict[GpuKey, Reservation] = {}
        self._of_job: dict[JobKey, GpuKey] = {}

    def make(self, gpu: GpuKey, job: JobKey, *, until_ns: int) -> None:
        """Keep a GPU for a job, in place of what was kept before."""
        self.release(job)
        if gpu in self._of_gpu:
            self.release(self._of_gpu[gpu].job)
        self._of_gpu[gpu] = Reservation(job, until_ns)
        self._of_job[job] = gpu

    def release(self, job: JobKey) -> None:
        """Keep nothing for this job any more."""
        gpu = self._of_job.pop(job, None)
        if gpu is not None:
            del self._of_gpu[gpu]

    def holder(self, gpu: GpuKey) -> JobKey | None:
        """For whom a GPU is kept."""
        found = self._of_gpu.get(gpu)
        return found.job if found else None

    def gpu_of(self, job: JobKey) -> GpuKey | None:
        """Which GPU is kept for a job."""
        return self._of_job.get(job)

    def expire(self, now_ns: int) -> None:
        """Give up what has lasted too long: a program may take its time to stop, and a GPU stands idle."""
        for gpu, kept in list(self._of_gpu.items()):
            if kept.until_ns <= now_ns:
                del self._of_gpu[gpu]
                del self._of_job[kept.job]

    def next_end_ns(self) -> int | None:
        """When the next one is given up; None while nothing is kept."""
        return min((kept.until_ns for kept in self._of_gpu.values()), default=None)
