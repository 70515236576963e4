"""Reading a stream in order without acks: the newest message of each subject, or everything from some point on.

Each filter has an ephemeral push consumer of its own, created through the subject that names its filter, so that
permissions can bind it. A gap, a missed heartbeat or a new connection makes a new consumer at the right place at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import msgspec
import structlog
from nats.aio.msg import Msg

from muxflow.bus.connection import Connection, Interest
from muxflow.bus.errors import BusError, Disconnected
from muxflow.bus.message import Delivery, parse_ack_subject
from muxflow.bus.requests import Requests, unique
from muxflow.bus.tasks import end

log = structlog.get_logger("muxflow.bus")

_HEARTBEAT_S: Final = 1.0
_SILENCE_S: Final = 2.2
_INACTIVE_S: Final = 30
_SECOND_NS: Final = 1_000_000_000
_RETRY_MAX_S: Final = 2.0


class FromSequence(msgspec.Struct, frozen=True):
    """Start at this position of the stream."""

    sequence: int


class FromTime(msgspec.Struct, frozen=True):
    """Start at the first message stored at or after this time (UTC, server's clock)."""

    time_ns: int


Start = Literal["last", "new", "all"] | FromSequence | FromTime
"""``last`` gives the newest message of each subject and then every new one."""

Deliver = Callable[[Msg, Delivery], Awaitable[None] | None]


class OrderedReader:
    """One filter of one stream."""

    def __init__(
        self,
        connection: Connection,
        requests: Requests,
        *,
        stream: str,
        pattern: str,
        start: Start,
        deliver: Deliver,
    ) -> None:
        self.stream = stream
        self.pattern = pattern
        self._connection = connection
        self._requests = requests
        self._start: Start = start
        self._deliver = deliver
        self._seen: dict[str, tuple[int, int]] = {}
        self._next_sequence: int | None = None
        self._last_consumer = 0
        self._heard = 0.0
        self._busy = False
        self._generation = 0
        self._interest: Interest | None = None
        self._caught_up = asyncio.Event()
        self._renew = asyncio.Event()
        self._ready = False
        self._keeper: asyncio.Task[None] | None = None
        self._forget_state: Callable[[], None] | None = None

    async def caught_up(self) -> None:
        """Wait until everything that was in the stream at the start has been handled."""
        await self._caught_up.wait()

    def open(self) -> None:
        """Begin, in the background."""
        self._forget_state = self._connection.on_state(lambda _: self._renew.set())
        self._renew.set()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name=f"reader-{self.pattern}")

    async def stop(self) -> None:
        """End; nothing more is handled afterwards."""
        if self._forget_state is not None:
            self._forget_state()
            self._forget_state = None
        self._generation += 1
        await end(self._keeper)
        if self._interest is not None:
            await self._interest.stop()  # the server drops a consumer whose listener is gone

    async def _keep(self) -> None:
        wait_s = 0.05
        complaint = ""
        while await self._connection.usable():
            self._renew.clear()
            try:
                await self._create()
            except BusError as error:
                if not isinstance(error, Disconnected) and str(error) != complaint:
                    complaint = str(error)
                    log.warning("cannot read, trying again", stream=self.stream, subject=self.pattern, reason=complaint)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _RETRY_MAX_S)
                continue
            wait_s, complaint = 0.05, ""
            await self._until_broken()

    async def _until_broken(self) -> None:
        while not self._renew.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT_S / 2):
                    await self._renew.wait()
            quiet = self._interest is not None and not self._interest.queued and not self._busy
            if quiet and time.monotonic() - self._heard > _SILENCE_S:
                return

    async def _create(self) -> None:
        """Make a new consumer and listen to it alone."""
        if self._interest is not None:
            await self._interest.stop()
        self._generation += 1
        self._last_consumer = 0
        self._ready = False
        name, inbox = unique(), f"{self._connection.settings.inbox_prefix}.{unique()}"
        if self._next_sequence is not None and await self._counts_anew(self._next_sequence):
            self._next_sequence = 1
        self._interest = await self._connection.subscribe(inbox, self._receiver(self._generation))
        request = {
            "stream_name": self.stream,
            "action": "create",
            "config": {
                "name": name,
                "filter_subject": self.pattern,
                "deliver_subject": inbox,
                "ack_policy": "none",
                "max_deliver": 1,
                "mem_storage": True,
                "num_replicas": 1,
                "flow_control": True,
                "idle_heartbeat": int(_HEARTBEAT_S * _SECOND_NS),
                "inactive_threshold": _INACTIVE_S * _SECOND_NS,
                **self._place(),
            },
        }
        self._heard = time.monotonic()
        answer = await self._requests.api(
            f"CONSUMER.CREATE.{self.stream}.{name}.{self.pattern}",
            request,
            timeout_s=self._connection.settings.publish_timeout_s,
        )
        self._heard = time.monotonic()
        if self._start != "last" and self._next_sequence is None:
            self._next_sequence = answer.get("delivered", {}).get("stream_seq", 0) + 1
        self._ready = True
        if answer.get("num_pending", 0) == 0 and self._last_consumer == 0:
            self._caught_up.set()

    async def _counts_anew(self, next_sequence: int) -> bool:
        """Whether the stream was made anew since: one in memory does not survive its server."""
        subject = f"$JS.API.DIRECT.GET.{self.stream}.{self.pattern}"
        newest = await self._requests.ask(subject, b"", timeout_s=self._connection.settings.publish_timeout_s)
        headers = newest.headers or {}
        return "Status" in headers or int(headers["Nats-Sequence"]) < next_sequence - 1

    def _place(self) -> dict[str, Any]:
        if self._start == "last":
            return {"deliver_policy": "last_per_subject"}
        if self._next_sequence is not None:
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": self._next_sequence}
        if isinstance(self._start, FromSequence):
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, self._start.sequence)}
        if isinstance(self._start, FromTime):
            return {"deliver_policy": "by_start_time", "opt_start_time": _rfc3339(self._start.time_ns)}
        return {"deliver_policy": self._start}

    def _receiver(self, generation: int) -> Callable[[Msg], Awaitable[None]]:
        async def receive(msg: Msg) -> None:
            if generation != self._generation:
                return
            self._heard = time.monotonic()
            delivery = parse_ack_subject(msg.reply) if msg.reply else None
            if delivery is None:
                await self._control(msg)
            elif delivery.consumer_sequence != self._last_consumer + 1:
                self._generation += 1  # a gap: what follows is ignored
                self._renew.set()
            else:
                await self._take(msg, delivery)

        return receive

    async def _take(self, msg: Msg, delivery: Delivery) -> None:
        if not self._repeated(msg.subject, delivery):
            self._busy = True
            try:
                result = self._deliver(msg, delivery)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                log.exception("a reader's handler failed", subject=msg.subject)
            finally:
                self._busy = False
                self._heard = time.monotonic()
        self._last_consumer = delivery.consumer_sequence
        if self._start != "last":
            self._next_sequence = delivery.stream_sequence + 1
        if delivery.pending == 0:
            self._caught_up.set()

    def _repeated(self, subject: str, delivery: Delivery) -> bool:
        """Whether a new consumer gives the very message again that the one before gave."""
        if self._start != "last":
            return False
        mark = (delivery.stream_sequence, delivery.time_ns)
        if self._seen.get(subject) == mark:
            return True
        self._seen[subject] = mark
        return False

    async def _control(self, msg: Msg) -> None:
        headers = msg.headers or {}
        if headers.get("Status") != "100":
            return
        with contextlib.suppress(Disconnected):
            if msg.reply:  # flow control: everything before it has been handled
                await self._connection.send(msg.reply, b"")
                return
            stalled = headers.get("Nats-Consumer-Stalled")
            if stalled:
                await self._connection.send(stalled, b"")
                return
        last = headers.get("Nats-Last-Consumer")
        if last is not None and self._ready:
            if int(last) != self._last_consumer:
                self._renew.set()
            else:
                self._caught_up.set()  # idle and nothing missing


class Reader:
    """One or more filters that are read together."""

    def __init__(self, parts: list[OrderedReader], *, on_caught_up: Callable[[], object] | None = None) -> None:
        self.stopped = False
        self._parts = parts
        self._teller: asyncio.Task[None] | None = None
        if on_caught_up is not None:
            self._teller = asyncio.get_running_loop().create_task(self._tell(on_caught_up))

    async def caught_up(self) -> None:
        """Wait until everything that was there at the start has been handled."""
        await asyncio.gather(*(part.caught_up() for part in self._parts))

    async def stop(self) -> None:
        """End; nothing more is handled afterwards."""
        self.stopped = True
        await end(self._teller)
        await asyncio.gather(*(part.stop() for part in self._parts))

    async def _tell(self, on_caught_up: Callable[[], object]) -> None:
        await self.caught_up()
        result = on_caught_up()
        if inspect.isawaitable(result):
            await result


def _rfc3339(time_ns: int) -> str:
    seconds, nanoseconds = divmod(time_ns, _SECOND_NS)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"
