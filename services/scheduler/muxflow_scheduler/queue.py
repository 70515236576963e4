"""Jobs that wait, in the order in which they go."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from muxflow.contracts import JobRecord, JobState
from muxflow_decisions.matching import WaitingJob
from muxflow_scheduler.ledger import JobKey, key_of


class Queue:
    """An index over records, kept up by `update`.

    `predicted_as` gives the key by which predictions know a job, empty where they know none.
    """

    def __init__(self, predicted_as: Callable[[JobRecord], str]) -> None:
        self._predicted_as = predicted_as
        self._jobs: dict[JobKey, WaitingJob] = {}
        self._held: dict[JobKey, int] = {}
        """Those in back-off, and its end."""

    def __len__(self) -> int:
        return len(self._jobs)

    def update(self, record: JobRecord) -> None:
        """Take in the newest record of a job, or a change of what is predicted for it."""
        key = key_of(record)
        if record.state is not JobState.PENDING:
            self._jobs.pop(key, None)
            self._held.pop(key, None)
            return
        self._jobs[key] = self.seen(record)
        if record.not_before_ns:
            self._held[key] = record.not_before_ns
        else:
            self._held.pop(key, None)

    def seen(self, record: JobRecord) -> WaitingJob:
        """Make of a record what matching sees of it."""
        job = WaitingJob.of(record)
        return replace(job, need=replace(job.need, key=self._predicted_as(record)))

    def in_order(self) -> list[WaitingJob]:
        """Every waiting job, the next one first."""
        return sorted(self._jobs.values(), key=lambda job: job.order)

    def next_release_ns(self, after_ns: int) -> int | None:
        """When the first back-off ends of those that end after a time; None if none does."""
        return min((at_ns for at_ns in self._held.values() if at_ns > after_ns), default=None)
