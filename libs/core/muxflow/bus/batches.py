"""Many publishes to one stream as one atomic batch: one fsync for all of them.

With ``sync_interval: always`` the server syncs each message by itself, which bounds a disk to some thousand messages a
second however many are under way. A batch is synced once, and costs about 2.5 ms by itself, so it pays from some
fifteen messages on (measured; docs/measurements.md). A publisher with few messages therefore never makes one.

A batch is stored whole or not at all. When it was not, for whatever reason (a conflict in one message, an answer that
was lost, a server that knows no batches), each message goes its own way, under its own identity.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog

from muxflow.bus.connection import Connection
from muxflow.bus.errors import BusError
from muxflow.bus.requests import ApiFailure, Requests, unique

log = structlog.get_logger("muxflow.bus")

SINGLES: Final = 8
"""Messages to one stream that are under way one by one before others wait to become a batch."""
SMALLEST: Final = 20
LARGEST: Final = 250
LARGEST_BYTES: Final = 1 << 20

_BATCH_ID: Final = "Nats-Batch-Id"
_BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
_BATCH_COMMIT: Final = "Nats-Batch-Commit"


class Outgoing(msgspec.Struct, frozen=True):
    """One message to be stored."""

    subject: str
    data: bytes
    headers: dict[str, str]


class PublishAck(msgspec.Struct, frozen=True):
    """The server has stored the message."""

    stream: str
    sequence: int
    duplicate: bool = False
    """True when a message of this identity had been stored before: `sequence` is then that one's."""


class _BatchAck(msgspec.Struct, frozen=True):
    stream: str = ""
    seq: int = 0
    count: int = 0
    error: ApiFailure | None = None


_ACK: Final = msgspec.json.Decoder(_BatchAck)

Alone = Callable[[Outgoing, bool], Awaitable[PublishAck]]
"""Stores one message by itself; the second argument says that it may be stored already."""


class _Waiting:
    """A message that waits for its turn."""

    __slots__ = ("alone", "message", "stored", "turn")

    def __init__(self, message: Outgoing) -> None:
        self.message = message
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.alone = False
        """Told to go alone: a place among the singles is counted for it."""
        self.stored: PublishAck | None = None


class Lane:
    """The way to one stream."""

    def __init__(self, connection: Connection, requests: Requests, alone: Alone, *, try_s: float) -> None:
        self._connection = connection
        self._requests = requests
        self._alone = alone
        self._try_s = try_s
        self._singles = 0
        self._batch: asyncio.Task[None] | None = None
        self._queue: deque[_Waiting] = deque()

    async def publish(self, message: Outgoing) -> PublishAck:
        """Store one message, in a batch if many others wait as well. Raises what storing it alone raises."""
        if self._singles < SINGLES and not self._queue:
            self._singles += 1
            return await self._single(message, maybe_stored=False)
        mine = _Waiting(message)
        self._queue.append(mine)
        self._go_on()
        try:
            await mine.turn
        except asyncio.CancelledError:
            if mine.alone:
                self._leave()
            raise
        if mine.alone:
            return await self._single(message, maybe_stored=False)
        if mine.stored is not None:
            return mine.stored
        self._singles += 1
        return await self._single(message, maybe_stored=True)

    async def _single(self, message: Outgoing, *, maybe_stored: bool) -> PublishAck:
        try:
            return await self._alone(message, maybe_stored)
        finally:
            self._leave()

    def _leave(self) -> None:
        self._singles -= 1
        self._go_on()

    def _go_on(self) -> None:
        """Begin what can be begun: a batch if enough wait, else single messages."""
        if self._batch is not None:
            return
        if len(self._queue) >= SMALLEST:
            self._batch = asyncio.get_running_loop().create_task(self._send_batch(self._take()))
            return
        while self._queue and self._singles < SINGLES:
            next_one = self._queue.popleft()
            if not next_one.turn.done():  # else it was cancelled
                next_one.alone = True
                self._singles += 1
                next_one.turn.set_result(None)

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        subjects: set[str] = set()
        size = 0
        while self._queue and len(taken) < LARGEST and size < LARGEST_BYTES:
            message = self._queue[0].message
            if message.subject in subjects:
                break  # a condition on a subject may stand only once in a batch
            waiting = self._queue.popleft()
            if not waiting.turn.done():
                taken.append(waiting)
                subjects.add(message.subject)
                size += len(message.data)
        return taken

    async def _send_batch(self, taken: list[_Waiting]) -> None:
        try:
            ack = await self._store([waiting.message for waiting in taken])
        except (BusError, msgspec.DecodeError):
            ack = _BatchAck()
        except Exception:  # whatever it is: each message goes its own way and meets it there
            log.exception("a batch could not be sent")
            ack = _BatchAck()
        stored_all = ack.error is None and ack.count == len(taken)
        for sequence, waiting in enumerate(taken, ack.seq - len(taken) + 1):
            if waiting.turn.done():
                continue
            if stored_all:
                waiting.stored = PublishAck(ack.stream, sequence)
            waiting.turn.set_result(None)
        self._batch = None
        self._go_on()

    async def _store(self, messages: list[Outgoing]) -> _BatchAck:
        if not messages:
            return _BatchAck()
        batch = unique()
        last = len(messages)
        for number, message in enumerate(messages, 1):
            headers = {**message.headers, _BATCH_ID: batch, _BATCH_SEQUENCE: str(number)}
            if number < last:
                await self._connection.send(message.subject, message.data, headers=headers)
                continue
            headers[_BATCH_COMMIT] = "1"
            answer = await self._requests.ask(message.subject, message.data, headers=headers, timeout_s=self._try_s)
            return _ACK.decode(answer.data)
        raise AssertionError("a batch has messages")
