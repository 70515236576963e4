"""Watched devices as their monitors tell of them: advice for placing. Protection is the node's and does not need it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from muxflow.bus import Bus, Message, Reader
from muxflow.contracts import DeviceCondition, DeviceState, OnlineState
from muxflow.contracts.catalogue import DEVICES_STATE, ONLINE_STATE
from muxflow_decisions.matching import Closed, closed
from muxflow_scheduler.desired import GpuKey
from muxflow_scheduler.fleet import Node

_STATE_LATE_S: Final = 30.0
"""After an eviction, the device's own word on its state is waited for this long; then what it said last counts."""


class Devices:
    """Newest state of every watched device and of the online side on it.

    `on_change` is called when work may be placed that could not be before, and `on_online` with a GPU on which another
    online workload is from now on, or none any more.
    """

    def __init__(self, bus: Bus, *, on_change: Callable[[], None], on_online: Callable[[GpuKey], None]) -> None:
        self._bus = bus
        self._on_change = on_change
        self._on_online = on_online
        self._readers: list[Reader] = []
        self._states: dict[GpuKey, DeviceState] = {}
        self._online: dict[GpuKey, OnlineState] = {}
        self._evicted_ns: dict[GpuKey, int] = {}
        """Devices that a job was just evicted from, and when, by the node's clock."""
        self._timers: set[asyncio.TimerHandle] = set()

    async def load(self) -> None:
        """Learn what was told last of every device, and go on listening."""
        self._readers.append(await self._bus.read(DEVICES_STATE, self._told, start="last"))
        self._readers.append(await self._bus.read(ONLINE_STATE, self._online_told, start="last"))
        for reader in self._readers:
            await reader.caught_up()

    async def close(self) -> None:
        """Stop listening."""
        for timer in self._timers:
            timer.cancel()
        for reader in self._readers:
            await reader.stop()

    def state(self, key: GpuKey) -> DeviceState | None:
        """What its monitor told last; None if it never did."""
        return self._states.get(key)

    def online(self, key: GpuKey) -> OnlineState | None:
        """What is known of the online workload there."""
        return self._online.get(key)

    def closed(self, node: Node, gpu: str) -> Closed | None:
        """Why a GPU takes no new offline work; None if it takes some, as those that nobody watches do."""
        if node.state is None or not node.state.watched:
            return None
        key = GpuKey(node.name, gpu)
        return closed(self.state(key), evicted_ns=self._evicted_ns.get(key, 0))

    def evicted(self, key: GpuKey, time_ns: int) -> None:
        """Take in that a node has begun to put a job off one of its devices, at this time of its clock."""
        self._evicted_ns[key] = max(time_ns, self._evicted_ns.get(key, 0))
        timer = asyncio.get_running_loop().call_later(_STATE_LATE_S, self._wait_no_longer, key, time_ns)
        self._timers = {each for each in self._timers if each.when() > asyncio.get_running_loop().time()} | {timer}

    def _wait_no_longer(self, key: GpuKey, time_ns: int) -> None:
        if self._evicted_ns.get(key) == time_ns:
            del self._evicted_ns[key]
            self._on_change()

    def _told(self, message: Message[DeviceState]) -> None:
        self._states[GpuKey(message.names["node"], message.names["gpu"])] = message.event
        if message.event.state is DeviceCondition.HEALTHY:
            self._on_change()

    def _online_told(self, message: Message[OnlineState]) -> None:
        key = GpuKey(message.names["node"], message.names["gpu"])
        before, self._online[key] = self._online.get(key), message.event
        if before is None or before.workload != message.event.workload:
            self._on_online(key)
