"""What the bus tells while a phase runs: every event that a figure is made of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from muxflow.bus import BusError
from muxflow.client import Client, ClientError, Received
from muxflow.contracts import (
    ALL_TENANTS,
    DeviceSummary,
    JobSummary,
    Pair,
    Speed,
    SpeedModel,
    SpeedsQuery,
)
from muxflow.contracts.catalogue import QUERY_QUEUE, QUERY_SPEEDS
from muxflow.contracts.queries import QueueQuery, QueueReply

KINDS: Final = ("telemetry", "devices.state", "alerts", "jobs", "runs", "decisions", "profiles", "speeds")
_CONNECT_S: Final = 20.0
_ASK_S: Final = 2.0
_AGAIN_S: Final = 0.5
_SINCE_S: Final = 3600.0


class Seen(msgspec.Struct, frozen=True):
    """One event, and when it was here."""

    time_ns: int
    """CLOCK_MONOTONIC, at its arrival."""
    received: Received


class Recorder:
    """One operator's connection to a machine, and everything that was told since it was opened."""

    def __init__(self, client: Client, hear: Callable[[Seen], None]) -> None:
        self.client = client
        self.seen: list[Seen] = []
        self._hear = hear

    @classmethod
    def connect(cls, state_dir: Path, hear: Callable[[Seen], None]) -> Recorder:
        """Make one; `hear` is told of each event as it comes. Its client must still be entered."""
        return cls(Client.connect(state_dir=state_dir, timeout_s=_CONNECT_S), hear)

    async def follow(self) -> None:
        """Listen until cancelled."""
        await asyncio.gather(*(self._listen(kind) for kind in KINDS))

    async def _listen(self, kind: str) -> None:
        while True:
            try:
                async for received in self.client.events(kind):
                    seen = Seen(time.monotonic_ns(), received)
                    self.seen.append(seen)
                    self._hear(seen)
            except ClientError:  # its machine is about to stop, or restarts something
                await asyncio.sleep(_AGAIN_S)

    async def devices(self) -> tuple[DeviceSummary, ...]:
        """Ask how the GPUs are."""
        return await self.client.devices(newest=False)

    async def jobs(self) -> tuple[JobSummary, ...]:
        """Ask how the jobs are."""
        return (await self.client.jobs(limit=1000)).jobs

    async def speeds(self, pairs: tuple[Pair, ...]) -> tuple[Speed, ...] | None:
        """Ask for predictions; None while nobody predicts."""
        try:
            reply = await self.client.bus.request(
                QUERY_SPEEDS, SpeedsQuery(pairs=pairs), timeout_s=_ASK_S, tenant=ALL_TENANTS
            )
        except BusError:
            return None
        speeds: tuple[Speed, ...] = reply.speeds
        return speeds

    async def model(self) -> SpeedModel | None:
        """Give the model of speeds that serves; None while there is none."""
        found = None
        async for received in self.client.events("speeds", since_s=_SINCE_S, follow=False):
            found = received.event
        return found

    async def queue(self) -> QueueReply | None:
        """Ask for the queue and the last solves; None while nobody answers that."""
        try:
            reply: Any = await self.client.bus.request(
                QUERY_QUEUE, QueueQuery(limit=1000), timeout_s=_ASK_S, tenant=ALL_TENANTS
            )
        except BusError:
            return None
        found: QueueReply = reply
        return found
