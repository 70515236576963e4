"""Consuming a durable: handlers run concurrently, but messages about one job strictly one after the other.

A handler that returns has its message acked. One that raises gets it again after a growing delay. What cannot be
handled, or has used up its deliveries, becomes a dead letter and is then terminated.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
from nats.aio.msg import Msg

from muxflow.bus.dead_letters import bury
from muxflow.bus.errors import Disconnected, PublishRefused, Retry, Undeliverable
from muxflow.bus.message import Handler, Message, RawMessage, parse_ack_subject
from muxflow.bus.pull import Puller
from muxflow.bus.tasks import end
from muxflow.contracts import SUBJECTS, Durable, Event, Subject

if TYPE_CHECKING:
    from muxflow.bus.bus import Bus

log = structlog.get_logger("muxflow.bus")

OnInvalid = Callable[[RawMessage, msgspec.ValidationError], Awaitable[bool] | bool]
"""Called for JSON that is not a valid event. True: dealt with, ack it. False: a dead letter."""

_ORDERED_BY: Final = ("tenant", "job")
_UNKNOWN: Final = Subject(name="unknown", template="", event=Event, stream=None, publishers=(), readers=())
_FIRST_DELAY_S: Final = 0.2
_DELAY_MAX_S: Final = 30.0


class ConsumerLag(msgspec.Struct, frozen=True, kw_only=True):
    """How far a consumer is behind, as of the newest delivery."""

    pending: int
    """Messages that the server has not delivered yet."""
    in_hand: int
    """Delivered and not yet acked."""
    oldest_s: float
    """Age of the oldest one in hand, since it was received."""


class _InHand:
    """One delivered message until it is acked."""

    __slots__ = ("raw", "received", "reply", "signalled")

    def __init__(self, raw: RawMessage, reply: str) -> None:
        self.raw = raw
        self.reply = reply
        self.received = self.signalled = time.monotonic()


class Consumer:
    """What `Bus.consume` gives back."""

    def __init__(
        self,
        bus: Bus,
        durable: Durable,
        handlers: Mapping[str, Handler],
        *,
        on_invalid: OnInvalid | None,
        concurrency: int,
    ) -> None:
        self._bus = bus
        self._durable = durable
        self._on_invalid = on_invalid
        self._routes = [(_head(subject), subject, handlers[subject.name]) for subject in _kinds(durable, handlers)]
        self._in_hand: dict[int, _InHand] = {}
        self._lines: dict[str, deque[tuple[_InHand, Handler]]] = {}
        """Messages that wait for the one before them, by what they are about."""
        self._running: set[asyncio.Task[None]] = set()
        self._pending = 0
        self.stopped = False
        self._signaller: asyncio.Task[None] | None = None
        self._puller = Puller(
            bus.connection,
            stream=durable.stream,
            durable=durable.name,
            capacity=min(concurrency, durable.max_ack_pending),
            in_hand=lambda: len(self._in_hand),
            deliver=self._delivered,
        )

    async def start(self) -> None:
        await self._puller.start()
        self._signaller = asyncio.get_running_loop().create_task(self._signal_progress())

    @property
    def lag(self) -> ConsumerLag:
        """For metrics."""
        oldest = next(iter(self._in_hand.values()), None)
        return ConsumerLag(
            pending=self._pending,
            in_hand=len(self._in_hand),
            oldest_s=time.monotonic() - oldest.received if oldest else 0.0,
        )

    async def stop(self, *, patience_s: float = 10.0) -> None:
        """Pull no more, give back what no handler has begun, wait for the handlers that run.

        One that takes longer than `patience_s`, because the bus is away perhaps, is cancelled: its message comes again.
        """
        if self.stopped:
            return
        self.stopped = True
        await self._puller.stop()
        for line in self._lines.values():
            for held, _ in line:
                await self._answer(held, b"-NAK")
            line.clear()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=patience_s)
            for task in late:
                await end(task)
        await end(self._signaller)

    def _delivered(self, msg: Msg) -> None:
        delivery = parse_ack_subject(msg.reply)
        if delivery is None or self.stopped:
            return
        self._pending = delivery.pending
        again = self._in_hand.get(delivery.stream_sequence)
        if again is not None:
            again.reply = msg.reply  # delivered a second time while we hold it: ack the newest delivery
            return
        subject, handler = self._route(msg.subject)
        held = _InHand(RawMessage(subject, msg.subject, msg.data, msg.headers, delivery), msg.reply)
        self._in_hand[delivery.stream_sequence] = held
        key = _ordering_key(subject, msg.subject)
        line = self._lines.get(key)
        if line is not None:
            line.append((held, handler))
            return
        self._lines[key] = line = deque([(held, handler)])
        task = asyncio.get_running_loop().create_task(self._work_off(key, line))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _route(self, address: str) -> tuple[Subject, Handler]:
        for head, subject, handler in self._routes:
            if address.startswith(head):
                return subject, handler
        return _UNKNOWN, _refuse

    async def _work_off(self, key: str, line: deque[tuple[_InHand, Handler]]) -> None:
        while line:
            held, handler = line.popleft()
            try:
                await self._handle(held, handler)
            finally:
                self._in_hand.pop(held.raw.stream_sequence or 0, None)
                self._puller.refill()
        del self._lines[key]

    async def _handle(self, held: _InHand, handler: Handler) -> None:
        try:
            await self._call(held.raw, handler)
        except (Undeliverable, msgspec.DecodeError) as error:
            await self._give_up(held, str(error))
        except Retry as retry:
            await self._again(held, retry.delay_s, str(retry) or "asked for by the handler")
        except Exception as error:
            log.exception("handler failed", subject=held.raw.address, deliveries=held.raw.deliveries)
            await self._again(held, None, f"{type(error).__name__}: {error}")
        else:
            await self._answer(held, b"+ACK")

    async def _call(self, raw: RawMessage, handler: Handler) -> None:
        """Decode and run the handler; returning means ack."""
        if raw.subject is _UNKNOWN:
            raise Undeliverable("no such subject in the catalogue")
        try:
            event = raw.decode(raw.subject.event)
            if contradiction := raw.contradiction(event):
                raise Undeliverable(contradiction)
        except msgspec.ValidationError as error:
            if self._on_invalid is None:
                raise
            handled = self._on_invalid(raw, error)
            if inspect.isawaitable(handled):
                handled = await handled
            if not handled:
                raise
            return
        except msgspec.DecodeError as error:
            raise Undeliverable(f"not JSON: {error}") from error
        except ValueError as error:  # a token of the subject is no encoded name
            raise Undeliverable(str(error)) from error
        result = handler(Message(raw, event))
        if inspect.isawaitable(result):
            await result

    async def _again(self, held: _InHand, delay_s: float | None, reason: str) -> None:
        if held.raw.deliveries >= self._durable.max_deliver:
            await self._give_up(held, f"{held.raw.deliveries} deliveries, the last one failed: {reason}")
            return
        if delay_s is None:
            delay_s = min(_FIRST_DELAY_S * 2 ** min(held.raw.deliveries - 1, 16), _DELAY_MAX_S)
        await self._answer(held, b'-NAK {"delay": %d}' % int(delay_s * 1e9))

    async def _give_up(self, held: _InHand, reason: str) -> None:
        try:
            await bury(self._bus, self._durable.role.value, held.raw, reason)
        except PublishRefused as error:
            log.error("cannot publish a dead letter", subject=held.raw.address, reason=str(error))  # noqa: TRY400
            await self._answer(held, b'-NAK {"delay": %d}' % int(_DELAY_MAX_S * 1e9))
            return
        log.warning("dead letter", subject=held.raw.address, reason=reason)
        await self._answer(held, b"+TERM")

    async def _answer(self, held: _InHand, word: bytes) -> None:
        with contextlib.suppress(Disconnected):  # it comes again after its ack wait, and handlers are idempotent
            await self._bus.connection.send(held.reply, word)

    async def _signal_progress(self) -> None:
        """Tell the server of every message in hand that it is not forgotten."""
        every_s = self._durable.ack_wait_s / 3
        while True:
            await asyncio.sleep(every_s / 2)
            now = time.monotonic()
            for held in list(self._in_hand.values()):
                if now - held.signalled >= every_s:
                    held.signalled = now
                    await self._answer(held, b"+WPI")


def _kinds(durable: Durable, handlers: Mapping[str, Handler]) -> list[Subject]:
    """Find the subjects that the durable delivers; there must be a handler for each."""
    kinds = [subject for subject in SUBJECTS if any(covers(pattern, subject.pattern()) for pattern in durable.filters)]
    missing = {kind.name for kind in kinds} - set(handlers)
    if missing:
        raise ValueError(f"durable {durable.stream}/{durable.name} delivers {sorted(missing)}: no handler")
    return kinds


def covers(pattern: str, other: str) -> bool:
    """Whether every subject that `other` matches is matched by `pattern` too."""
    ours, theirs = pattern.split("."), other.split(".")
    if ours[-1] == ">":
        ours.pop()
        theirs = theirs[: len(ours)] if len(theirs) > len(ours) else ["", *theirs]
    return len(ours) == len(theirs) and all(mine in ("*", token) for mine, token in zip(ours, theirs, strict=True))


def _refuse(message: Message[Event]) -> None:
    raise Undeliverable(f"no handler for {message.address}")


def _head(subject: Subject) -> str:
    return subject.template.partition("{")[0]


def _ordering_key(subject: Subject, address: str) -> str:
    """Make what messages are ordered by: the job where the subject names one, else the whole subject."""
    at = [index for index, token in enumerate(subject.template.split(".")) if token[1:-1] in _ORDERED_BY]
    if not at:
        return address
    tokens = address.split(".")
    return ".".join(tokens[index] for index in at if index < len(tokens))
