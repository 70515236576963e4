"""What users are told about their jobs, and the deletion of what was told long ago."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Final

import structlog

from muxflow.bus import Bus, PublishRefused, StreamFull, WrongLastSequence, upkeep
from muxflow.contracts import (
    DURABLES,
    JobAccepted,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobRecord,
    JobRejected,
    Subject,
)
from muxflow.contracts.catalogue import (
    JOBS_ACCEPTED,
    JOBS_CANCEL,
    JOBS_CANCELLED,
    JOBS_FAILED,
    JOBS_FINISHED,
    JOBS_REJECTED,
    JOBS_SUBMIT,
)
from muxflow_decisions import lifecycle
from muxflow_scheduler.ledger import Ledger, key_of
from muxflow_scheduler.metrics import SchedulerMetrics

log = structlog.get_logger()

Announcement = JobAccepted | JobRejected | JobFinished | JobFailed | JobCancelled

_TERMINAL: Final = (JobFinished, JobFailed, JobCancelled)
_SUBJECTS: Final[dict[type[Announcement], Subject]] = {
    JobAccepted: JOBS_ACCEPTED,
    JobRejected: JOBS_REJECTED,
    JobFinished: JOBS_FINISHED,
    JobFailed: JOBS_FAILED,
    JobCancelled: JOBS_CANCELLED,
}
_JOBS_DURABLE: Final = next(durable for durable in DURABLES if durable.stream == "JOBS")
_DAY_NS: Final = 86_400 * 10**9
_PURGE_EVERY_S: Final = 3600.0
_FULL_WAIT_S: Final = 1.0


class Announcements:
    """Publishes outcomes; each terminal one is stored once for all time."""

    def __init__(self, bus: Bus, metrics: SchedulerMetrics, *, retention_days: float) -> None:
        self._bus = bus
        self._metrics = metrics
        self._retention_ns = int(retention_days * _DAY_NS)

    async def tell(self, event: Announcement) -> None:
        """Publish an outcome; waits while the stream is full, for the purge to make room."""
        complained = False
        while True:
            try:
                await self._store(event)
            except StreamFull as error:
                if not complained:
                    log.error("users cannot be told", reason=str(error), job=event.job, tenant=event.tenant)  # noqa: TRY400
                complained = True
                await asyncio.sleep(_FULL_WAIT_S)
            except PublishRefused as error:
                log.error("an outcome cannot be published", reason=str(error), job=event.job, tenant=event.tenant)  # noqa: TRY400
                return
            else:
                return

    async def _store(self, event: Announcement) -> None:
        subject = _SUBJECTS[type(event)]
        if not isinstance(event, _TERMINAL):
            await self._bus.publish(subject, event, tenant=event.tenant, job=event.job)
            return
        try:
            # Told apart by the subject's last sequence alone: a message id could be taken by somebody else before.
            await self._bus.publish(
                subject,
                event,
                expect_last=0,
                message_id=uuid.uuid4().hex,
                tenant=event.tenant,
                job=event.job,
            )
        except WrongLastSequence:
            return
        self._metrics.ended.labels(type(event).__name__.removeprefix("Job").lower()).inc()
        log.info(type(event).__name__, tenant=event.tenant, job=event.job, attempt=event.attempt)

    async def repair(self, records: Sequence[JobRecord]) -> None:
        """Publish what is in a record and not in the stream. What ended before the retention may be purged already."""
        published: set[str] = set()
        for subject in (JOBS_ACCEPTED, JOBS_FINISHED, JOBS_FAILED, JOBS_CANCELLED):
            published |= await upkeep.subjects_in(self._bus, subject)
        for record in records:
            if record.state.terminal and record.changed_ns < time.time_ns() - self._retention_ns:
                continue
            for event in (lifecycle.accepted_event(record), lifecycle.terminal_event(record)):
                if event is None:
                    continue
                if _SUBJECTS[type(event)].of(tenant=record.tenant, job=record.job) not in published:
                    await self.tell(event)

    async def purge_for_ever(self, ledger: Ledger) -> None:
        """Delete what ended before the retention, once an hour. Runs until cancelled."""
        while True:
            oldest_ns = time.time_ns() - self._retention_ns
            due = [record for record in ledger if record.state.terminal and record.changed_ns < oldest_ns]
            if due:
                # A submission that nobody has handled yet stays: it may be the first of a new job of that name.
                handled = await upkeep.handled_up_to(self._bus, _JOBS_DURABLE)
                for record in due:
                    await self._purge(record, ledger, up_to=handled)
            await asyncio.sleep(_PURGE_EVERY_S)

    async def _purge(self, record: JobRecord, ledger: Ledger, *, up_to: int) -> None:
        names = {"tenant": record.tenant, "job": record.job}
        for subject in (JOBS_SUBMIT, JOBS_CANCEL, *_SUBJECTS.values()):
            await upkeep.purge(self._bus, "JOBS", subject.of(**names), up_to=up_to)
        await ledger.forget(key_of(record))
        log.info("purged", **names)
