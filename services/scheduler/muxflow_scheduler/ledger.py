"""All job records: in memory for deciding, written through to the bucket ``jobs`` by compare-and-swap.

A record is changed in memory at once and written in the background, one write per job at a time; a change that comes
while a write is under way is written next, together with later ones. Whoever promises something to the outside (an
ack, an event, a decision) first awaits `settled`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import msgspec
import structlog

from muxflow.bus import Bus, KeyExists, Reader, WrongLastSequence
from muxflow.contracts import JobRecord
from muxflow.contracts.catalogue import BUCKET_JOBS

log = structlog.get_logger()

JobKey = tuple[str, str]
"""Tenant and job."""


class Superseded(Exception):  # noqa: N818 - it ends a term, and is no fault
    """Somebody else wrote a record of ours: this scheduler no longer leads."""


def key_of(record: JobRecord) -> JobKey:
    """Identity of a record's job."""
    return (record.tenant, record.job)


class Ledger:
    """The records of one term. `on_failure` is called once if a record can no longer be written."""

    def __init__(self, bus: Bus, on_failure: Callable[[BaseException], None]) -> None:
        self._bucket = bus.kv(BUCKET_JOBS)
        self._on_failure = on_failure
        self._records: dict[JobKey, JobRecord] = {}
        self._committed: dict[JobKey, JobRecord] = {}
        self._revisions: dict[JobKey, int] = {}
        self._writes: dict[JobKey, asyncio.Task[None]] = {}
        self._damaged: set[str] = set()
        self._failure: BaseException | None = None
        self._watch: Reader | None = None

    async def load(self) -> None:
        """Read every record there is. What cannot be read is named in the log and left alone."""
        for entry in await self._bucket.entries(on_invalid=self._invalid):
            key = key_of(entry.value)
            self._records[key] = self._committed[key] = entry.value
            self._revisions[key] = entry.revision
        last = max(self._revisions.values(), default=0)
        self._watch = self._bucket.writes(self._somebody_wrote, after=last)

    def _somebody_wrote(self, entry: str, revision: int, problem: msgspec.DecodeError | None) -> None:
        """A leader that was superseded, and does not know it yet, has written a record: ours are out of date.

        What nobody can read was written by no leader; it concerns us once we write that record.
        """
        if problem is not None:
            self._damaged.add(entry)
            return
        self._fail(Superseded(f"record {entry} was written by somebody else, revision {revision}"))

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            self._on_failure(error)

    async def damage(self, key: JobKey) -> str | None:
        """Say what to do about a job whose record cannot be read; None for all others.

        Looks again, because it may have been done meanwhile. Raises `BusError` while the bus is away, and `Superseded`
        when there is a good record now, which the next term reads.
        """
        entry = self._entry(key)
        if entry not in self._damaged:
            return None
        try:
            found = await self._bucket.get(entry)
        except msgspec.DecodeError:
            return _what_to_do(key, entry)
        if found is not None:
            repaired = Superseded(f"record of {key} was repaired by somebody else")
            self._fail(repaired)
            raise repaired
        self._damaged.discard(entry)
        return None

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[JobRecord]:
        return iter(self._records.values())

    def get(self, key: JobKey) -> JobRecord | None:
        """The record as decided last."""
        return self._records.get(key)

    def committed(self, key: JobKey) -> JobRecord | None:
        """The record as the bucket has it."""
        return self._committed.get(key)

    def put(self, record: JobRecord) -> None:
        """Change a record, and begin to write it."""
        key = key_of(record)
        self._records[key] = record
        if key not in self._writes:
            task = self._writes[key] = asyncio.get_running_loop().create_task(self._write(key))
            task.add_done_callback(self._written)

    async def settled(self, key: JobKey) -> None:
        """Wait until every change made so far is in the bucket. Raises what kept it from being written."""
        if (task := self._writes.get(key)) is not None:
            await asyncio.shield(task)
        if self._failure is not None:
            raise self._failure

    async def forget(self, key: JobKey) -> None:
        """Delete a record for good."""
        await self.settled(key)
        revision = self._revisions.get(key)
        if revision is None:
            return
        try:
            await self._bucket.delete(self._entry(key), last=revision)
        except WrongLastSequence as error:
            raise Superseded(f"record of {key} was changed by somebody else") from error
        for table in (self._records, self._committed, self._revisions):
            table.pop(key, None)

    async def close(self) -> None:
        """Give up what is not written, and write nothing any more."""
        self._fail(Superseded("the term is over"))
        if self._watch is not None:
            await self._watch.stop()
        for task in self._writes.values():
            task.cancel()

    async def _write(self, key: JobKey) -> None:
        try:
            while self._failure is None and (record := self._records[key]) is not self._committed.get(key):
                self._revisions[key] = await self._store(key, record)
                self._committed[key] = record
        finally:
            del self._writes[key]

    async def _store(self, key: JobKey, record: JobRecord) -> int:
        try:
            if key in self._revisions:
                return await self._bucket.update(self._entry(key), record, last=self._revisions[key])
            return await self._bucket.create(self._entry(key), record)
        except (KeyExists, WrongLastSequence) as error:
            raise Superseded(f"record of {key} was changed by somebody else") from error

    def _entry(self, key: JobKey) -> str:
        return self._bucket.key(tenant=key[0], job=key[1])

    def _invalid(self, entry: str, error: msgspec.DecodeError) -> None:
        self._damaged.add(entry)
        log.error("damaged record, its job is left alone", key=entry, reason=str(error), delete=_deletion(entry))

    def _written(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)


def _what_to_do(key: JobKey, entry: str) -> str:
    return f"the record of job {key[1]!r} is damaged; an operator frees its name by `{_deletion(entry)}`"


def _deletion(entry: str) -> str:
    """How somebody with the provisioner's credentials deletes a record."""
    return f"nats stream purge KV_{BUCKET_JOBS.name} --subject='$KV.{BUCKET_JOBS.name}.{entry}'"
