"""The continuous puller: keeps a durable's deliveries coming, whatever happens to the server or the durable."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from typing import Final

import msgspec
import structlog
from nats.aio.msg import Msg

from muxflow.bus.connection import Connection, Interest
from muxflow.bus.errors import Disconnected
from muxflow.bus.requests import unique
from muxflow.bus.tasks import end

log = structlog.get_logger("muxflow.bus")

_EXPIRES_S: Final = 30.0
_HEARTBEAT_S: Final = 1.0
_SILENCE_S: Final = 2.5
_BACKOFF_MAX_S: Final = 5.0
_SECOND_NS: Final = 1_000_000_000


class Puller:
    """Asks the server for more whenever half of what may be in hand has been handled."""

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str,
        durable: str,
        capacity: int,
        in_hand: Callable[[], int],
        deliver: Callable[[Msg], None],
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._durable = durable
        self._capacity = capacity
        self._in_hand = in_hand
        self._deliver = deliver
        self._inbox = f"{connection.settings.inbox_prefix}.{unique()}"
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._numbers = itertools.count(1)
        self._asked: dict[str, int] = {}
        """Messages still to come, by the request that asked for them."""
        self._heard = 0.0
        self._interest: Interest | None = None
        self._wake = asyncio.Event()
        self._trouble = ""
        self._backoff_s = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self._forget_state: Callable[[], None] | None = None
        self._forget_violations: Callable[[], None] | None = None

    async def start(self) -> None:
        self._interest = await self._connection.subscribe(f"{self._inbox}.*", self._received)
        self._forget_state = self._connection.on_state(self._state_changed)
        self._forget_violations = self._connection.on_violation(self._forbidden)
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name=f"pull-{self._stream}")

    async def stop(self) -> None:
        """Ask for nothing more; what arrives now comes again to somebody else after its ack wait."""
        if self._forget_state is not None:
            self._forget_state()
            self._forget_state = None
        if self._forget_violations is not None:
            self._forget_violations()
            self._forget_violations = None
        await end(self._keeper)
        if self._interest is not None:
            await self._interest.stop()

    def refill(self) -> None:
        """Say that something in hand has been handled."""
        if self._room() * 2 >= self._capacity:
            self._wake.set()

    def _room(self) -> int:
        return self._capacity - self._in_hand() - sum(self._asked.values())

    async def _keep(self) -> None:
        while await self._connection.usable():
            if self._backoff_s:
                await asyncio.sleep(self._backoff_s)
            self._wake.clear()
            if self._asked and time.monotonic() - self._heard > _SILENCE_S and not self._queued():
                self._asked.clear()  # no heartbeat: the request is gone
            if self._room() * 2 >= self._capacity:
                with contextlib.suppress(Disconnected):
                    await self._ask(self._room())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT_S / 2):
                    await self._wake.wait()

    def _queued(self) -> bool:
        return self._interest is not None and self._interest.queued > 0

    async def _ask(self, batch: int) -> None:
        number = str(next(self._numbers))
        request = {
            "batch": batch,
            "expires": int(_EXPIRES_S * _SECOND_NS),
            "idle_heartbeat": int(_HEARTBEAT_S * _SECOND_NS),
        }
        if not self._asked:
            self._heard = time.monotonic()
        self._asked[number] = batch
        await self._connection.send(self._next, msgspec.json.encode(request), reply=f"{self._inbox}.{number}")

    async def _received(self, msg: Msg) -> None:
        self._heard = time.monotonic()
        if msg.reply:
            self._well()
            self._count_down()
            self._deliver(msg)
            return
        headers = msg.headers or {}
        status, text = headers.get("Status", ""), headers.get("Description", "")
        if not status:
            log.debug("not for us", subject=msg.subject)
            return
        if status == "100":
            self._well()
            return
        self._asked.pop(msg.subject.rpartition(".")[2], None)
        if status in {"404", "408"}:
            self._well()
        elif status == "503" or "deleted" in text.lower():
            self._troubled("the durable does not exist" if status == "503" else text)
        elif status == "409":
            log.debug("pull request ended", stream=self._stream, reason=text)
        else:
            self._troubled(f"{text} ({status})")
        self._wake.set()

    def _count_down(self) -> None:
        """A message answers the oldest request that still waits for some."""
        for number, left in self._asked.items():
            if left > 1:
                self._asked[number] = left - 1
            else:
                del self._asked[number]
            return

    def _state_changed(self, connected: bool) -> None:
        self._asked.clear()
        self._backoff_s = 0.0
        if connected:
            self._wake.set()

    def _forbidden(self, kind: str, lowered: str) -> None:
        if kind == "publish" and lowered == self._next.lower():
            self._asked.clear()
            self._troubled("these credentials may not pull from it")

    def _troubled(self, reason: str) -> None:
        self._backoff_s = min(max(0.1, 2 * self._backoff_s), _BACKOFF_MAX_S)
        if reason != self._trouble:
            self._trouble = reason
            log.warning("cannot consume, trying again", stream=self._stream, durable=self._durable, reason=reason)

    def _well(self) -> None:
        self._backoff_s = 0.0
        if self._trouble:
            self._trouble = ""
            log.info("consuming again", stream=self._stream, durable=self._durable)
