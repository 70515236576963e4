"""A disk outbox: what a node must tell survives its processes and waits for the bus."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from muxflow.bus.errors import BusError, Forbidden, OutboxFull, PublishRefused, StreamFull
from muxflow.bus.tasks import end
from muxflow.contracts import Event, Subject, complete, encode

if TYPE_CHECKING:
    from muxflow.bus.bus import Bus

log = structlog.get_logger("muxflow.bus")

_SCHEMA: Final = """
create table if not exists outbox (
    number integer primary key autoincrement,
    event text not null,
    address text not null,
    data blob not null
) strict
"""
_REFUSED_WAIT_S: Final = 10.0
_AWAY_WAIT_S: Final = 0.1
_DISK_WAIT_S: Final = 1.0


class _Row(NamedTuple):
    number: int
    event: str
    address: str
    data: bytes


class _Job(NamedTuple):
    statement: str
    arguments: tuple[object, ...]
    done: Callable[[int | None, BaseException | None], None]


class Outbox:
    """A queue on disk, in order, emptied into JetStream whenever the bus is there.

    An event that `put` has returned for survives kill -9 and power loss. It may be published twice; its id makes that
    harmless.
    """

    def __init__(self, path: Path, *, source: str, max_rows: int = 100_000, max_bytes: int = 256 << 20) -> None:
        self._path = path
        self._source = source
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._rows: dict[int, _Row] = {}
        self._retry_at: dict[int, float] = {}
        """Events that the bus has refused, and when to try them again; they hold up no others meanwhile."""
        self._acked: list[int] = []
        """Events that the bus has, and the disk has not let go of."""
        self._bytes = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._drainer: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        self._complained = False
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._on_delivered: list[Callable[[str], object]] = []

    @property
    def pending(self) -> int:
        """Events not yet acked by the bus."""
        return len(self._rows)

    async def open(self) -> None:
        """Open or make the file. Raises `OSError` or `sqlite3.Error` if it cannot be used."""
        opened = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        self._writer = threading.Thread(target=self._write, args=(loop, opened), name="outbox", daemon=True)
        self._writer.start()
        rows: list[_Row] = await opened
        self._rows = {row.number: row for row in rows}
        self._bytes = sum(len(row.data) for row in rows)
        self._more.set()

    async def put(self, subject: Subject, event: Event, **names: str) -> str:
        """Store one event; on return it is on disk. Returns its id. Raises `OutboxFull`, `sqlite3.Error`."""
        event = complete(event, id=uuid.uuid4().hex, source=self._source, time_ns=time.time_ns())
        data = encode(event)
        if len(self._rows) >= self._max_rows or self._bytes + len(data) > self._max_bytes:
            raise OutboxFull(f"{self._path.name} holds {len(self._rows)} events, {self._bytes} bytes")
        address = subject.of(**names)
        self._bytes += len(data)
        try:
            number = await self._run(
                "insert into outbox (event, address, data) values (?, ?, ?)", (event.id, address, data)
            )
        except BaseException:
            self._bytes -= len(data)
            raise
        self._rows[number] = _Row(number, event.id, address, data)
        self._more.set()
        return event.id

    def drain_to(self, bus: Bus, *, on_failure: Callable[[BaseException], object] | None = None) -> None:
        """Begin to publish what is stored, in order, and all that comes. `on_failure` is told if that ever ends.

        An event that the bus refuses is tried again later; it is never dropped, and the others go on.
        """
        self._drainer = asyncio.get_running_loop().create_task(self._drain(bus), name="outbox")

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None and on_failure is not None:
                on_failure(error)

        self._drainer.add_done_callback(ended)

    def on_delivered(self, callback: Callable[[str], object]) -> None:
        """Call back with the id of each event that the bus has acked."""
        self._on_delivered.append(callback)

    async def delivered(self, event_id: str) -> None:
        """Wait until the event has been acked by the bus; returns at once for one that is not here."""
        if all(row.event != event_id for row in self._rows.values()):
            return
        await asyncio.shield(self._waiting.setdefault(event_id, asyncio.get_running_loop().create_future()))

    async def close(self) -> None:
        """Stop; what has not been acked stays on disk."""
        await end(self._drainer)
        self._jobs.put(None)
        if self._writer is not None:
            await asyncio.to_thread(self._writer.join)

    async def _drain(self, bus: Bus) -> None:
        while True:
            row = self._next()
            if row is None:
                await self._idle()
                continue
            try:
                await bus.publish_raw(row.address, row.data, message_id=row.event)
            except (StreamFull, Forbidden) as refused:
                log.error("outbox waits", subject=row.address, reason=str(refused))  # noqa: TRY400
                await asyncio.sleep(_REFUSED_WAIT_S)
                continue
            except PublishRefused as refused:
                if row.number not in self._retry_at:
                    log.error("event refused, trying it again", subject=row.address, reason=str(refused))  # noqa: TRY400
                self._retry_at[row.number] = time.monotonic() + _REFUSED_WAIT_S
                continue
            except BusError as error:
                log.debug("outbox waits", reason=str(error))
                await asyncio.sleep(_AWAY_WAIT_S)
                continue
            self._acked.append(row.number)
            self._forget(row)
            await self._delete_acked()

    def _next(self) -> _Row | None:
        now = time.monotonic()
        return next((row for row in self._rows.values() if self._retry_at.get(row.number, 0.0) <= now), None)

    async def _idle(self) -> None:
        """Wait for the next event, or for the time to try again what did not work."""
        self._more.clear()
        waits = [at - time.monotonic() for at in self._retry_at.values()]
        if self._acked:
            waits.append(_DISK_WAIT_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(waits)) if waits else None):
                await self._more.wait()
        await self._delete_acked()

    async def _delete_acked(self) -> None:
        """Drop from the disk what the bus has. Until the disk lets it go it may be published again: no harm."""
        try:
            for number in tuple(self._acked):
                await self._run("delete from outbox where number = ?", (number,))
                self._acked.remove(number)
        except sqlite3.Error as error:
            if not self._complained:
                log.error("outbox cannot drop what is published, trying again", error=str(error))  # noqa: TRY400
            self._complained = True
        else:
            self._complained = False

    def _forget(self, row: _Row) -> None:
        del self._rows[row.number]
        self._retry_at.pop(row.number, None)
        self._bytes -= len(row.data)
        waiting = self._waiting.pop(row.event, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        for callback in self._on_delivered:
            callback(row.event)

    async def _run(self, statement: str, arguments: tuple[object, ...]) -> int:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()

        def resolve(number: int | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(number or 0)

        def done(number: int | None, error: BaseException | None) -> None:
            loop.call_soon_threadsafe(resolve, number, error)

        self._jobs.put(_Job(statement, arguments, done))
        return await future

    def _write(self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[list[_Row]]) -> None:
        """Own the database, in a thread: everything that waits is one transaction."""
        try:
            database = sqlite3.connect(self._path, isolation_level=None)
            database.execute("pragma journal_mode = wal")
            database.execute("pragma synchronous = full")
            database.execute(_SCHEMA)
            rows = [
                _Row(*row)
                for row in database.execute("select number, event, address, data from outbox order by number")
            ]
        except Exception as error:  # noqa: BLE001 - raised by open()
            loop.call_soon_threadsafe(opened.set_exception, error)
            return
        loop.call_soon_threadsafe(opened.set_result, rows)
        with contextlib.closing(database):
            while (job := self._jobs.get()) is not None:
                batch = [job]
                ended = False
                while not self._jobs.empty():
                    following = self._jobs.get()
                    if following is None:
                        ended = True
                        break
                    batch.append(following)
                _commit(database, batch)
                if ended:
                    return


def _commit(database: sqlite3.Connection, batch: list[_Job]) -> None:
    try:
        database.execute("begin immediate")
        numbers = [database.execute(job.statement, job.arguments).lastrowid for job in batch]
        database.execute("commit")
    except Exception as error:  # noqa: BLE001 - raised to whoever waits; the thread must go on
        with contextlib.suppress(sqlite3.Error):
            database.execute("rollback")
        for job in batch:
            job.done(None, error)
        return
    for job, number in zip(batch, numbers, strict=True):
        job.done(number, None)
