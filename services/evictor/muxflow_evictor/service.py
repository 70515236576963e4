"""The evictor: has offline jobs put off a GPU that the online side needs, and tells people."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

from muxflow import state_lock
from muxflow.bus import Bus, BusError, Message, Outbox
from muxflow.contracts.catalogue import ALERTS_EVICTION, DEVICES_STATE, ONLINE_STATE
from muxflow.contracts.devices import DeviceState, EvictionAlert, GpuSample
from muxflow.contracts.nodes import OnlineState
from muxflow.health import Health
from muxflow.service import CannotStart, Service
from muxflow_decisions.eviction import order
from muxflow_device.breaches import Broken
from muxflow_device.eviction import EvictOrder
from muxflow_device.rundir import RunDirectory
from muxflow_evictor.device import WatchedDevice, attempts_on, sample_of
from muxflow_evictor.ledger import Ledger
from muxflow_evictor.metrics import EvictorMetrics
from muxflow_evictor.orders import Orders
from muxflow_evictor.settings import EvictorSettings

_NEW_DEVICES_S: Final = 1.0
_NEXT_READING_S: Final = 1.0
_RETRY_S: Final = 1.0


class Evictor(Service[EvictorSettings]):
    """Clears devices that the online side needs, through the node's executor. It works without the bus."""

    name = "evictor"
    needs_bus = False

    def __init__(self, settings: EvictorSettings, bus: Bus, health: Health) -> None:
        super().__init__(settings, bus, health)
        section = settings.evictor
        self._node = section.node
        self._poll_s = section.poll_ms / 1000
        self._state_dir = Path(section.state_dir)
        self._run = RunDirectory(Path(section.run_dir)) if section.run_dir is not None else RunDirectory.default()
        self._devices: dict[str, WatchedDevice] = {}
        self._workloads: dict[str, str | None] = {}
        self._metrics = EvictorMetrics(self.registry)
        self._look = asyncio.Event()
        self._looked = asyncio.Condition()
        self._opened = False

    async def start(self) -> None:
        """Watch the devices; go on with the evictions that an earlier evictor had begun."""
        try:
            self._run.prepare()
            socket = self._run.executor_socket
        except (OSError, ValueError) as error:
            raise CannotStart(f"evictor.run_dir {self._run.path}: {error}") from None
        try:
            self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = state_lock.hold(self._state_dir, self.name)
            self._outbox = Outbox(self._state_dir / "outbox.db", source=self.bus.source)
            await self._outbox.open()
            self._opened = True
            self._orders = Orders(
                node=self._node,
                socket=socket,
                ledger=Ledger(self._state_dir / "under_way"),
                tell=self._tell,
                readings_after=self._readings_after,
                spawn=self._spawn,
                on_over=lambda total_ms: self._metrics.duration.observe(total_ms / 1000),
            )
            await self._orders.resume()
        except (OSError, sqlite3.Error) as error:
            raise CannotStart(f"evictor.state_dir {self._state_dir}: {error}") from None
        self._outbox.drain_to(self.bus, on_failure=self.fail)
        self.health.require("devices", lambda: None if self._watched else "no device page is written")
        self.health.require("executor", lambda: self._orders.away)
        self._metrics.observe(
            devices=lambda: self._watched,
            under_way=lambda: self._orders.under_way,
            alerts=lambda: self._outbox.pending,
        )
        self._find_devices()
        self.spawn(self._find(), name="find")
        self.spawn(self._watch(), name="watch")
        bindings = {"node": self._node}
        await self.bus.read(DEVICES_STATE, self._state_changed, start="new", bindings=bindings)
        await self.bus.read(ONLINE_STATE, self._online_changed, start="last", bindings=bindings)

    async def stop(self, received: signal.Signals) -> None:
        """Leave what is under way to the next evictor."""
        del received
        if self._opened:
            await self._outbox.close()
            self._lock.close()

    # --- looking

    @property
    def _watched(self) -> int:
        return sum(device.view.fresh for device in tuple(self._devices.values()))

    async def _find(self) -> None:
        while True:
            await asyncio.sleep(_NEW_DEVICES_S)
            self._find_devices()

    def _find_devices(self) -> None:
        for directory in self._run.devices():
            if directory.uuid not in self._devices:
                self.log.info("watching", gpu=directory.uuid)
                self._devices[directory.uuid] = WatchedDevice(directory, self.settings.evictor.policy)

    async def _watch(self) -> None:
        while True:
            for device in tuple(self._devices.values()):
                wanted = device.look()
                if wanted is not None:
                    self._spawn(self._clear(device, wanted))
                for broken in device.due_breaches(partial(attempts_on, self._run, device.gpu)):
                    self._spawn(self._stop_one(device, broken, repeat=device.orders_of(broken) - 1))
            async with self._looked:
                self._looked.notify_all()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._look.wait()
            self._look.clear()

    def _state_changed(self, message: Message[DeviceState]) -> None:
        """Somebody has written a page: look at once. What holds stands on the page, not in the event."""
        del message
        self._look.set()

    def _online_changed(self, message: Message[OnlineState]) -> None:
        state = message.event
        self.log.info("online workload", gpu=state.gpu, workload=state.workload)
        self._workloads[state.gpu] = state.workload

    async def _readings_after(self, gpu: str, boottime_ns: int) -> GpuSample | None:
        """Wait for readings that were taken after a moment; None if none come soon."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NEXT_READING_S), self._looked:
                while (device := self._devices.get(gpu)) is not None:
                    report = device.view.report
                    if report is not None and report.time_boottime_ns > boottime_ns:
                        return sample_of(gpu, device.view)
                    await self._looked.wait()
        return None

    # --- clearing

    async def _clear(self, device: WatchedDevice, wanted: order.Evict) -> None:
        decision = EvictOrder(
            gpu=device.gpu,
            cause=wanted.cause,
            hard=wanted.hard,
            workload=self._workloads.get(device.gpu),
            decided_ns=time.time_ns(),
        )
        before = sample_of(device.gpu, device.view)
        here = attempts_on(self._run, device.gpu)
        self._metrics.orders.labels(device.gpu).inc()
        if here or not wanted.repeat:
            self.log.warning(
                "clearing a device",
                gpu=device.gpu,
                attempts=[str(attempt) for attempt in here],
                reason=wanted.cause,
                hard=wanted.hard,
                repeat=wanted.repeat,
            )
        done = await self._orders.carry_out(decision, before=before, here=here)
        answer = order.CarriedOut(epoch=wanted.epoch) if done else order.Failed(epoch=wanted.epoch)
        device.answered(answer)

    async def _stop_one(self, device: WatchedDevice, broken: Broken, *, repeat: int) -> None:
        """Have one attempt stopped that has broken a rule. It may be past all gates: there is no time to save.

        People are told once the executor obeys: an attempt that has gone meanwhile is no news.
        """
        decision = EvictOrder(
            gpu=device.gpu,
            attempts=(broken.attempt,),
            cause=broken.cause,
            hard=True,
            breach=True,
            decided_ns=broken.decided_ns,
        )
        self._metrics.breaches.labels(device.gpu).inc()
        self.log.warning(
            "stopping a job", gpu=device.gpu, attempt=str(broken.attempt), reason=broken.cause, repeat=repeat
        )
        await self._orders.carry_out(decision, before=sample_of(device.gpu, device.view), here=())
        device.stopped(broken)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self.spawn(work, name="eviction")

    # --- telling

    async def _tell(self, alert: EvictionAlert) -> None:
        """Put an alert into the outbox; from there it reaches the bus whenever it is there."""
        complaint = ""
        while True:
            try:
                await self._outbox.put(ALERTS_EVICTION, alert, node=self._node)
            except (BusError, sqlite3.Error, OSError) as error:
                if str(error) != complaint:
                    complaint = str(error)
                    self.log.error("cannot store an alert, trying again", id=alert.id, error=complaint)  # noqa: TRY400
                await asyncio.sleep(_RETRY_S)
            else:
                return
