"""Profiles on their way to the bus: the newest of each subject, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import structlog

from muxflow.bus import Bus, PublishRefused
from muxflow.contracts import CorunProfile, Event, OfflineProfile, OnlineProfile, Subject
from muxflow.contracts.catalogue import PROFILES_CORUN, PROFILES_OFFLINE, PROFILES_ONLINE

log = structlog.get_logger()

_SUBJECTS: Final[dict[type[Event], Subject]] = {
    OfflineProfile: PROFILES_OFFLINE,
    OnlineProfile: PROFILES_ONLINE,
    CorunProfile: PROFILES_CORUN,
}


class Telling:
    """Publishes what it is told. A profile that is overtaken by a newer one before the bus took it is not sent."""

    def __init__(self, bus: Bus, *, on_published: Callable[[Subject], None]) -> None:
        self._bus = bus
        self._on_published = on_published
        self._waiting: dict[str, Any] = {}
        """Events by concrete subject."""
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """Profiles that the bus has not taken yet."""
        return len(self._waiting) + (not self._idle.is_set())

    def tell(self, event: Event) -> None:
        """Publish it soon."""
        self._waiting[_SUBJECTS[type(event)].of(**_names(event))] = event
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Publish what is told, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                address = next(iter(self._waiting))
                await self._publish(address, self._waiting.pop(address))
            self._idle.set()

    async def told(self) -> None:
        """Wait until the bus has everything."""
        await self._idle.wait()

    async def _publish(self, address: str, event: Event) -> None:
        subject = _SUBJECTS[type(event)]
        try:
            await self._bus.publish(subject, event, **_names(event))
        except PublishRefused as refused:
            log.error("a profile is not published", subject=address, reason=str(refused))  # noqa: TRY400
        else:
            self._on_published(subject)


def _names(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in _SUBJECTS[type(event)].placeholders}
