"""All job records: in memory for deciding, written through to the bucket ``jobs`` by compare-and-swap.

A record is changed in memory at once and written in the background, one write per job at a time; a change that comes
while a write is under way is written next, together with later ones. Whoever promises something to the outside (an
ack, an event, a decision) first awaits `settled`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from muxflow.bus import Bus, KeyExists, WrongLastSequence
from muxflow.contracts import JobRecord
from muxflow.contracts.catalogue import BUCKET_JOBS

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

    async def load(self) -> None:
        """Read every record there is."""
        for entry in await self._bucket.entries():
            key = key_of(entry.value)
            self._records[key] = self._committed[key] = entry.value
            self._revisions[key] = entry.revision

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

    async def forget(self, key: JobKey) -> None:
        """Delete a record for good."""
        await self.settled(key)
        revision = self._revisions.get(key)
        if revision is None:
            return
        try:
            await self._bucket.delete(self._bucket.key(tenant=key[0], job=key[1]), last=revision)
        except WrongLastSequence as error:
            raise Superseded(f"record of {key} was changed by somebody else") from error
        for table in (self._records, self._committed, self._revisions):
            table.pop(key, None)

    def close(self) -> None:
        """Give up what is not written."""
        for task in self._writes.values():
            task.cancel()

    async def _write(self, key: JobKey) -> None:
        try:
            while (record := self._records[key]) is not self._committed.get(key):
                self._revisions[key] = await self._store(key, record)
                self._committed[key] = record
        finally:
            del self._writes[key]

    async def _store(self, key: JobKey, record: JobRecord) -> int:
        try:
            if key in self._revisions:
                return await self._bucket.update(
                    self._bucket.key(tenant=key[0], job=key[1]), record, last=self._revisions[key]
                )
            return await self._bucket.create(self._bucket.key(tenant=key[0], job=key[1]), record)
        except (KeyExists, WrongLastSequence) as error:
            raise Superseded(f"record of {key} was changed by somebody else") from error

    def _written(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
