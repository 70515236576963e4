"""A lease: one holder at a time, as far as the server and a monotonic clock can tell."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from muxflow.bus.errors import BusError, KeyExists, PublishRefused
from muxflow.bus.key_value import KeyValue
from muxflow.bus.tasks import end

log = structlog.get_logger("muxflow.bus")


class Lease:
    """A key in a bucket with a TTL, kept alive for as long as it is held.

    Holding it is counted from before the last renewal that succeeded was sent, by a clock that nobody sets and that
    goes on while the machine sleeps, so it ends here before the server can give it to somebody else.
    """

    def __init__(
        self,
        bucket: KeyValue[Any],
        key: str,
        *,
        ttl_s: float,
        value: Callable[[], msgspec.Struct],
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        self.term = 0
        """The revision at which the lease was taken: grows with every holder. 0 before the first time."""
        self.lost = asyncio.Event()
        """Set when a lease that was held has ended without `release`."""
        self._bucket = bucket
        self._key = key
        self._ttl_s = ttl_s
        self._value = value
        self._on_lost = on_lost
        self._revision = 0
        self._until = 0.0
        self._renewer: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether the lease is certainly ours at this moment."""
        return _now() < self._until

    async def acquire(self) -> int:
        """Wait until the lease is ours; returns the term. Never raises for a bus that is away."""
        while not await self.try_acquire():  # noqa: ASYNC110 - nothing tells when a key goes by its TTL
            await asyncio.sleep(self._ttl_s / 6)
        return self.term

    async def try_acquire(self) -> bool:
        """Take the lease if it is free now."""
        sent = _now()
        try:
            revision = await self._bucket.create(
                self._key, self._value(), deadline_s=self._ttl_s * 2 / 3, try_s=self._ttl_s / 3
            )
        except KeyExists:
            return False
        except BusError as error:
            log.debug("lease not taken", key=self._key, reason=str(error))
            return False
        if sent + self._ttl_s <= _now():
            return False  # it may have ended already; it goes away by itself
        self.term = self._revision = revision
        self._until = sent + self._ttl_s
        self.lost.clear()
        self._renewer = asyncio.get_running_loop().create_task(self._renew(), name=f"lease-{self._key}")
        return True

    async def release(self) -> None:
        """Give the lease up at once, so that nobody has to wait for its end."""
        held, self._until = self.held, 0.0
        await end(self._renewer)
        if held:
            with contextlib.suppress(BusError):
                await self._bucket.delete(self._key, last=self._revision, deadline_s=1.0)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(max(0.0, self._until - self._ttl_s * 2 / 3 - _now()))
            sent = _now()
            left_s = self._until - sent
            if left_s <= 0:
                self._end("could not be renewed in time")
                return
            try:
                # One identity until the end: a try that was stored but whose ack was lost counts from the first send.
                self._revision = await self._bucket.update(
                    self._key, self._value(), last=self._revision, deadline_s=left_s, try_s=self._ttl_s / 3
                )
            except PublishRefused as refused:
                self._end(str(refused))
                return
            except BusError:
                continue
            self._until = sent + self._ttl_s

    def _end(self, reason: str) -> None:
        self._until = 0.0
        log.warning("lease lost", key=self._key, term=self.term, reason=reason)
        self.lost.set()
        if self._on_lost is not None:
            self._on_lost()


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
