"""The bus as services see it: typed publishes, durables, readers, buckets, leases, questions."""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import msgspec
import structlog
from nats.aio.msg import Msg

from muxflow.bus import queries
from muxflow.bus.batches import PublishAck
from muxflow.bus.connection import Connection, Interest
from muxflow.bus.consumer import Consumer, OnInvalid
from muxflow.bus.errors import Disconnected
from muxflow.bus.key_value import KeyValue, parse_time
from muxflow.bus.lease import Lease
from muxflow.bus.message import Delivery, Handler, Message, RawHandler, RawMessage
from muxflow.bus.objects import ObjectStore
from muxflow.bus.publishing import Publisher
from muxflow.bus.reader import FromSequence, OrderedReader, Reader, Start
from muxflow.bus.requests import Requests, check_size
from muxflow.bus.settings import BusSettings
from muxflow.contracts import Bucket, Durable, Event, Subject, complete, encode

log = structlog.get_logger("muxflow.bus")

E = TypeVar("E", bound=Event)


class Subscription:
    """A live subscription; what is published while it is disconnected is missed."""

    def __init__(self, interest: Interest) -> None:
        self._interest = interest
        self.stopped = False

    async def stop(self) -> None:
        """Unsubscribe after handling what has arrived."""
        self.stopped = True
        await self._interest.stop(drain=True)


class Bus:
    """One connection of one process. Make it with `connect`."""

    def __init__(self, settings: BusSettings, *, source: str) -> None:
        self.settings = settings
        self.source = source
        """``<service>@<host>``: the `source` of events published here."""
        self.connection = Connection(settings, name=source)
        self.requests = Requests(self.connection)
        self._publisher = Publisher(self.connection, self.requests)
        self._open: list[Consumer | Reader | queries.Responder | Subscription] = []

    @classmethod
    async def connect(cls, settings: BusSettings, *, source: str, wait: bool = True) -> Bus:
        """Connect for ever: returns once connected, or at once with ``wait=False``."""
        bus = cls(settings, source=source)
        await bus.requests.open()
        bus.connection.start()
        if wait:
            try:
                await bus.connection.wait_connected()
            except BaseException:
                await bus.connection.close()
                raise
        return bus

    async def close(self) -> None:
        """Stop consumers and readers, let handlers finish, flush, disconnect."""
        while self._open:
            await self._open.pop().stop()
        await self.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        return self.connection.connected

    def on_state(self, callback: Callable[[bool], object]) -> Callable[[], None]:
        """Call back with True after each connect and False after each loss; returns how to stop that."""
        return self.connection.on_state(callback)

    def on_reconnect(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back after each connect from now on."""
        return self.connection.on_state(lambda connected: callback() if connected else None)

    async def publish(
        self,
        subject: Subject,
        event: Event,
        *,
        expect_last: int | None = None,
        message_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
        **names: str,
    ) -> PublishAck:
        """Store an event in its stream; returns when the server has it.

        Fills in `id`, `source` and `time_ns`. Tries until acked, refused or past `deadline_s`; repetitions carry the
        same identity (`message_id`, else the event's id) and are stored once. `expect_last` is the sequence that the
        newest message on this very subject must have, 0 for none.

        Raises `PublishRefused` (`WrongLastSequence`, `StreamFull`, `PayloadTooLarge`, `Forbidden`), `PublishTimeout`.
        """
        event = self.completed(event)
        return await self._publisher.publish(
            subject.of(**names),
            encode(event),
            message_id=message_id or event.id,
            stream=subject.stream,
            headers=dict(headers) if headers else None,
            expect_last=expect_last,
            deadline_s=deadline_s,
        )

    async def publish_raw(
        self, address: str, data: bytes, *, message_id: str, headers: Mapping[str, str] | None = None
    ) -> PublishAck:
        """Store bytes under a concrete subject: an outbox's rows, a dead letter that is sent again."""
        return await self._publisher.publish(
            address, data, message_id=message_id, headers=dict(headers) if headers else None
        )

    async def publish_live(self, subject: Subject, event: Event, **names: str) -> None:
        """Send to whoever listens now, without an ack. Dropped while there is no connection."""
        data = encode(self.completed(event))
        address = subject.of(**names)
        check_size(self.connection, address, data)
        try:
            await self.connection.send(address, data)
        except Disconnected:
            log.debug("dropped, not connected", subject=address)

    def completed(self, event: E) -> E:
        """Fill in `id`, `source` and `time_ns`."""
        return complete(event, id=event.id or uuid.uuid4().hex, source=self.source, time_ns=time.time_ns())

    async def consume(
        self,
        durable: Durable,
        handlers: Mapping[str, Handler],
        *,
        on_invalid: OnInvalid | None = None,
        concurrency: int = 1024,
    ) -> Consumer:
        """Handle what a durable delivers; `handlers` by the short names of its subjects.

        See `muxflow.bus.consumer` for what returning and raising mean.
        """
        consumer = Consumer(self, durable, handlers, on_invalid=on_invalid, concurrency=concurrency)
        await consumer.start()
        self._remember(consumer)
        return consumer

    async def read(
        self,
        subjects: Subject | Sequence[Subject],
        handler: Handler,
        *,
        start: Start | int = "last",
        bindings: Mapping[str, str] | None = None,
        on_caught_up: Callable[[], object] | None = None,
        on_invalid: Callable[[RawMessage, msgspec.DecodeError], object] | None = None,
    ) -> Reader:
        """Read stored events in order, without acks, and then every new one as it comes.

        An integer as `start` is a stream sequence. Events that cannot be decoded are logged, or given to `on_invalid`.
        """
        place: Start = FromSequence(start) if isinstance(start, int) else start
        kinds = [subjects] if isinstance(subjects, Subject) else list(subjects)
        parts = []
        for kind in kinds:
            if kind.stream is None:
                raise ValueError(f"{kind.name} is kept in no stream")
            parts.append(
                OrderedReader(
                    self.connection,
                    self.requests,
                    stream=kind.stream,
                    pattern=kind.pattern(**_of(kind, bindings)),
                    start=place,
                    deliver=_decoding(kind, handler, on_invalid),
                )
            )
        for part in parts:
            part.open()
        reader = Reader(parts, on_caught_up=on_caught_up)
        self._remember(reader)
        return reader

    async def subscribe(
        self, subject: Subject, handler: Handler, *, bindings: Mapping[str, str] | None = None
    ) -> Subscription:
        """Handle live events, one after the other. Raises `Forbidden`."""

        async def receive(msg: Msg) -> None:
            raw = RawMessage.of(subject, msg)
            try:
                event = raw.decode(subject.event)
            except msgspec.DecodeError as error:
                log.warning("ignored", subject=msg.subject, reason=str(error))
                return
            try:
                result = handler(Message(raw, event))
                if result is not None:
                    await result
            except Exception:
                log.exception("a subscriber failed", subject=msg.subject)

        return await self._subscribed(subject.pattern(**_of(subject, bindings)), receive)

    async def subscribe_raw(
        self, subject: Subject, handler: RawHandler, *, bindings: Mapping[str, str] | None = None
    ) -> Subscription:
        """Handle live messages without decoding them. Raises `Forbidden`."""

        async def receive(msg: Msg) -> None:
            try:
                result = handler(RawMessage.of(subject, msg))
                if result is not None:
                    await result
            except Exception:
                log.exception("a subscriber failed", subject=msg.subject)

        return await self._subscribed(subject.pattern(**_of(subject, bindings)), receive)

    async def last(self, subject: Subject, **names: str) -> Message[Any] | None:
        """Read the newest stored event of one concrete subject.

        Raises `msgspec.DecodeError`, `Forbidden`, `Disconnected`, `RequestTimeout`, `NoResponders`.
        """
        address = subject.of(**names)
        msg = await self.requests.ask(
            f"$JS.API.DIRECT.GET.{subject.stream}.{address}", b"", timeout_s=self.settings.publish_timeout_s
        )
        headers = msg.headers or {}
        if headers.get("Status"):
            return None
        at = Delivery(
            stream=headers["Nats-Stream"],
            consumer="",
            deliveries=1,
            stream_sequence=int(headers["Nats-Sequence"]),
            consumer_sequence=0,
            time_ns=parse_time(headers["Nats-Time-Stamp"]),
            pending=0,
        )
        raw = RawMessage(subject, address, msg.data, headers, at)
        return Message(raw, raw.decode(subject.event))

    def kv(self, bucket: Bucket) -> KeyValue[Any]:
        """Open a key-value bucket."""
        return KeyValue(bucket, self.connection, self.requests, self._publisher)

    def objects(self, store: str) -> ObjectStore:
        """Open an object store."""
        return ObjectStore(store, self.connection, self.requests, self._publisher)

    def lease(
        self,
        bucket: Bucket,
        key: str,
        value: Callable[[], msgspec.Struct],
        *,
        ttl_s: float | None = None,
        on_lost: Callable[[], object] | None = None,
    ) -> Lease:
        """Make a lease on an encoded key of a bucket; `value` is called for each renewal."""
        return Lease(self.kv(bucket), key, ttl_s=ttl_s or bucket.ttl_s, value=value, on_lost=on_lost)

    async def request(self, subject: Subject, event: Event, *, timeout_s: float, **names: str) -> Any:
        """Ask a question; returns the event that answers it.

        Raises `QueryError`, `NoResponders`, `RequestTimeout`, `Disconnected`, `Forbidden`.
        """
        return await queries.ask(self.requests, subject, self.completed(event), timeout_s=timeout_s, names=names)

    async def serve(
        self,
        name: str,
        version: str,
        endpoints: Mapping[Subject, queries.QueryHandler],
        *,
        bindings: Mapping[str, str] | None = None,
    ) -> queries.Responder:
        """Answer questions until stopped."""
        responder = queries.Responder(
            self.connection, name, version, endpoints, bindings=bindings or {}, completed=self.completed
        )
        await responder.start()
        self._remember(responder)
        return responder

    def _remember(self, opened: Consumer | Reader | queries.Responder | Subscription) -> None:
        """Have it stopped by `close`, unless somebody does so before."""
        self._open = [other for other in self._open if not other.stopped]
        self._open.append(opened)

    async def _subscribed(self, pattern: str, receive: Callable[[Msg], Awaitable[None]]) -> Subscription:
        subscription = Subscription(await self.connection.subscribe_confirmed(pattern, receive))
        self._remember(subscription)
        return subscription


def _of(subject: Subject, bindings: Mapping[str, str] | None) -> dict[str, str]:
    return {name: value for name, value in (bindings or {}).items() if name in subject.placeholders}


def _decoding(
    subject: Subject, handler: Handler, on_invalid: Callable[[RawMessage, msgspec.DecodeError], object] | None
) -> Callable[[Msg, Delivery], Awaitable[None] | None]:
    def deliver(msg: Msg, delivery: Delivery) -> Awaitable[None] | None:
        raw = RawMessage(subject, msg.subject, msg.data, msg.headers, delivery)
        try:
            event = raw.decode(subject.event)
        except msgspec.DecodeError as error:
            if on_invalid is None:
                log.warning("ignored", subject=msg.subject, sequence=delivery.stream_sequence, reason=str(error))
            else:
                on_invalid(raw, error)
            return None
        if contradiction := raw.contradiction(event):
            log.warning("ignored", subject=msg.subject, sequence=delivery.stream_sequence, reason=contradiction)
            return None
        result = handler(Message(raw, event))
        return result if inspect.isawaitable(result) else None

    return deliver
