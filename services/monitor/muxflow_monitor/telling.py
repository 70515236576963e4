"""From threads to the bus: events in the order in which they were told, by way of a disk outbox."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import structlog

from muxflow.bus import BusError, Outbox
from muxflow.contracts import DeviceAlert, DeviceFault, DeviceState, Event, OnlineAlert, OnlineState, Subject
from muxflow.contracts.catalogue import ALERTS_DEVICE, ALERTS_ONLINE, DEVICES_FAULT, DEVICES_STATE, ONLINE_STATE

log = structlog.get_logger()

_SUBJECTS: Final[dict[type[Event], Subject]] = {
    DeviceState: DEVICES_STATE,
    DeviceFault: DEVICES_FAULT,
    DeviceAlert: ALERTS_DEVICE,
    OnlineAlert: ALERTS_ONLINE,
    OnlineState: ONLINE_STATE,
}
_RETRY_S: Final = 1.0


class Telling:
    """Takes events from any thread, and stores them one after the other."""

    def __init__(self, outbox: Outbox, *, before: Callable[[Event], None]) -> None:
        """`before` is called in the event loop with each event that is about to be stored."""
        self._outbox = outbox
        self._before = before
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def tell(self, event: Event) -> None:
        """Store it soon. Never waits, for threads must not."""
        self._waiting.append(event)
        with contextlib.suppress(RuntimeError):  # the loop has ended before the thread: it cannot be told any more
            self._loop.call_soon_threadsafe(self._more)

    async def run(self) -> None:
        """Store what is told, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                event = self._waiting.popleft()
                self._before(event)
                await self._store(event)
            self._idle.set()

    async def told(self) -> None:
        """Wait until everything is in the outbox."""
        await asyncio.sleep(0)  # what a thread has told just now
        await self._idle.wait()

    def _more(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def _store(self, event: Any) -> None:
        complaint = ""
        subject = _SUBJECTS[type(event)]
        names = {name: getattr(event, name) for name in subject.placeholders}
        while True:
            try:
                await self._outbox.put(subject, event, **names)
                return
            except (BusError, sqlite3.Error, OSError) as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.error("cannot store an event, trying again", error=complaint)  # noqa: TRY400
                await asyncio.sleep(_RETRY_S)
