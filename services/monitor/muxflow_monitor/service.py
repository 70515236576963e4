"""The monitor: watches a node's GPUs, sets their gates and tells what it sees.

The threads of `watch` protect; what is here tells. Nothing here is waited for by them.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from muxflow import state_lock
from muxflow.bus import Bus, BusError, Message, Outbox
from muxflow.contracts import DeviceRequest, DeviceState, Event, Gpu, GpuSample, NodeTelemetry, SloReport
from muxflow.contracts.catalogue import REQUESTS_DEVICE, SLO, TELEMETRY
from muxflow.health import Health
from muxflow.service import CannotStart, Service
from muxflow_decisions.device import Disable, Enable
from muxflow_device.faults import XidWatch
from muxflow_device.inventory import discover
from muxflow_device.nvml import Nvml, NvmlUnavailable
from muxflow_device.pages import DevicePageWriter, PageError
from muxflow_device.readings.rhythm import Rhythm
from muxflow_device.rundir import DeviceDirectory, RunDirectory
from muxflow_monitor.conduct import Conduct
from muxflow_monitor.declared import Declared
from muxflow_monitor.memory import DeviceMemories, Kept
from muxflow_monitor.metrics import MonitorMetrics
from muxflow_monitor.observer import Observer
from muxflow_monitor.online import OnlineStates
from muxflow_monitor.page import Page
from muxflow_monitor.samples import blank, with_offline
from muxflow_monitor.settings import MonitorSettings
from muxflow_monitor.telling import Telling
from muxflow_monitor.watch import DeviceWatch
from muxflow_monitor.workloads import DeclarationError

_SECOND_NS: Final = 1_000_000_000
_FRESH_NS: Final = 2 * _SECOND_NS
"""A sample that is older is not sent as one of now."""
_STOP_S: Final = 5.0
_APART_MS: Final = 1.0
"""From one GPU's look to the next one's: not at once, for the driver's sake, but close, since what the first look has
brought into the caches makes the others cost a fraction (8 GPUs: 3.1% of a core instead of 5.8%)."""


class Monitor(Service[MonitorSettings]):
    """Watches the GPUs of this node, sets the gates of its offline work and tells what it sees.

    When it is stopped the gates stay as they are, and close once its heartbeat has been still for
    monitor.stale_after_ms.
    """

    name = "monitor"
    needs_bus = False

    def __init__(self, settings: MonitorSettings, bus: Bus, health: Health) -> None:
        super().__init__(settings, bus, health)
        section = settings.monitor
        self._section = section
        self._node = section.node
        self._state_dir = Path(section.state_dir)
        self._run = RunDirectory(Path(section.run_dir)) if section.run_dir else RunDirectory.default()
        self._loop = asyncio.get_running_loop()
        self._metrics = MonitorMetrics(self.registry)
        self._nvml = Nvml()
        self._memories = DeviceMemories(self._state_dir)
        self._disabled: dict[str, str] = {}
        """Reasons of an operator's standing wishes, by GPU."""
        self._declared = Declared(section.online, self._state_dir / "online.toml", node=self._node)
        self._online = OnlineStates(self._node)
        self._watches: dict[str, DeviceWatch] = {}
        self._xids: XidWatch | None = None
        self._telling: Telling | None = None
        self._epochs: dict[str, int] = {}
        """Of the state that was told last, by GPU."""

    async def start(self) -> None:
        """Begin to watch; the bus may be away."""
        outbox = Outbox(self._state_dir / "outbox.db", source=self.bus.source)
        try:
            self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = state_lock.hold(self._state_dir, self.name)
            self._memories.open()
            await outbox.open()
        except (OSError, sqlite3.Error) as error:
            raise CannotStart(f"monitor.state_dir {self._state_dir}: {error}") from None
        self._outbox = outbox
        self._telling = Telling(outbox, before=self._about_to_tell)
        kept = self._memories.load()
        gpus = self._find_gpus(kept)
        try:
            self._declared.read(gpus)
        except DeclarationError as error:
            raise CannotStart(str(error)) from None
        self._watch(gpus, kept)
        self._metrics.observe_outbox(lambda: outbox.pending)
        self.health.require("devices", self._silent)
        outbox.drain_to(self.bus, on_failure=self.fail)
        self.spawn(self._telling.run(), name="telling")
        self.spawn(self._tick(), name="tick")
        await self.bus.read(REQUESTS_DEVICE, self._requested, start="last", bindings={"node": self._node})
        try:
            await self.bus.subscribe(SLO, self._reported)
        except BusError as error:
            self.log.error("latency reports cannot be read", error=str(error))  # noqa: TRY400

    async def stop(self, received: signal.Signals) -> None:  # noqa: ARG002 - both signals mean the same here
        """Stop looking, and leave gates and memories to the next monitor."""
        closing = [watch.close for watch in self._watches.values()]
        if self._xids is not None:
            closing.append(self._xids.close)
        await asyncio.gather(*(asyncio.to_thread(close) for close in closing))
        if self._telling is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._telling.told()
        await self._outbox.close()
        self._lock.close()

    # --- beginning

    def _find_gpus(self, kept: Mapping[str, Kept]) -> tuple[Gpu, ...]:
        """Find the GPUs of this node, and those that do not answer now but did since the boot. Raises `CannotStart`."""
        try:
            self._nvml.open()
            found = discover()
        except NvmlUnavailable as error:
            raise CannotStart(f"{error}; is the NVIDIA driver loaded on this node?") from None
        there = {gpu.uuid for gpu in found}
        missing = (entry.gpu for entry in kept.values() if self._memories.of_this_boot(entry) is not None)
        gpus = (*found, *(gpu for gpu in missing if gpu.uuid not in there))
        if not gpus:
            raise CannotStart("NVML lists no GPU on this node")
        return gpus

    def _watch(self, gpus: tuple[Gpu, ...], kept: Mapping[str, Kept]) -> None:
        """Start a thread for each GPU, and one for XIDs. Raises `CannotStart`."""
        for number, gpu in enumerate(gpus):
            entry = kept.get(gpu.uuid)
            try:
                watch = self._make_watch(gpu, entry, part=number * _APART_MS / self._section.period_ms % 1.0)
            except (OSError, PageError) as error:
                raise CannotStart(f"monitor.run_dir {self._run.path}: {error}") from None
            self._watches[gpu.uuid] = watch
            self._metrics.observe(
                gpu.uuid,
                condition=lambda watch=watch: watch.view.memory.condition,  # type: ignore[misc]
                gate=lambda watch=watch: watch.view.memory.gate,  # type: ignore[misc]
            )
            watch.declare(self._declared.of(gpu.uuid))
            if entry is not None and entry.disabled is not None:
                self._disabled[gpu.uuid] = entry.disabled
                watch.start(Disable(reason=entry.disabled))
            else:
                watch.start(Enable())  # the wish may have been kept, and the change that it makes not any more
        self._xids = XidWatch(self._nvml, self._watches, lambda uuid, xid: self._watches[uuid].report_xid(xid))
        self._xids.start()
        self.log.info("watching", gpus=[f"{gpu.kind} {gpu.uuid}" for gpu in gpus], run_dir=str(self._run.path))

    def _make_watch(self, gpu: Gpu, kept: Kept | None, *, part: float) -> DeviceWatch:
        assert self._telling is not None  # noqa: S101 - start() has made it
        directory = self._run.device(gpu.uuid)
        return DeviceWatch(
            gpu,
            node=self._node,
            nvml=self._nvml,
            observer=Observer(
                self._nvml,
                self._run,
                gpu.uuid,
                slo_ratio=self._declared.slo_ratio,
                beacon_obeyed=self._section.beacon_holdoff_us > 0,
            ),
            page=Page(lambda: self._page(directory, gpu)),
            conduct=Conduct(directory, self._section.conduct),
            rhythm=Rhythm(period_ms=self._section.period_ms, part=part),
            policy=self._section.policy,
            tell_again_s=self._section.tell_again_s,
            memory=self._memories.of_this_boot(kept),
            metrics=self._metrics.of(gpu.uuid),
            tell=self._telling.tell,
            on_found=self._found,
            on_failure=self._thread_failed,
        )

    def _page(self, directory: DeviceDirectory, gpu: Gpu) -> DevicePageWriter:
        return DevicePageWriter(
            directory,
            uuid=gpu.uuid,
            stale_after_ms=self._section.stale_after_ms,
            beacon_holdoff_us=self._section.beacon_holdoff_us,
        )

    # --- from the threads

    def _found(self) -> None:
        if self._xids is not None:
            self._xids.again()

    def _thread_failed(self, error: BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before the thread
            self._loop.call_soon_threadsafe(self.fail, error)

    # --- telling

    def _about_to_tell(self, event: Event) -> None:
        if isinstance(event, DeviceState) and self._epochs.get(event.gpu) != event.epoch:
            self._epochs[event.gpu] = event.epoch
            self.log.info("device", gpu=event.gpu, state=event.state.value, epoch=event.epoch, cause=event.cause)
            self._keep(self._watches[event.gpu])

    def _keep(self, watch: DeviceWatch) -> None:
        try:
            self._memories.save(watch.gpu, watch.view.memory, disabled=self._disabled.get(watch.gpu.uuid))
        except OSError as error:
            self.log.warning("a device's memory cannot be kept", error=str(error))

    async def _tick(self) -> None:
        """Once a second, at a moment of this node's own: nodes that all send at once keep each other waiting."""
        rhythm = Rhythm(period_ms=1000, part=zlib.crc32(self._node.encode()) / 2**32)
        while True:
            now_ns = time.time_ns()
            await asyncio.sleep((rhythm.after(now_ns) - now_ns) / _SECOND_NS)
            await self._publish_telemetry()
            self._look_at_declarations()
            self._tell_online_states()

    async def _publish_telemetry(self) -> None:
        now_ns = time.monotonic_ns()
        samples = tuple(_current(watch, now_ns) for watch in self._watches.values())
        try:
            await self.bus.publish_live(TELEMETRY, NodeTelemetry(node=self._node, gpus=samples), node=self._node)
        except BusError as error:
            self.log.debug("telemetry is not sent", error=str(error))

    def _look_at_declarations(self) -> None:
        try:
            changed = self._declared.changed()
        except DeclarationError as error:
            self.log.error("online workloads stay as they were", error=str(error))  # noqa: TRY400
            return
        if changed:
            for uuid, watch in self._watches.items():
                watch.declare(self._declared.of(uuid))

    def _tell_online_states(self) -> None:
        now_ns = time.monotonic_ns()
        for uuid, watch in self._watches.items():
            state = self._online.changed(uuid, self._declared.of(uuid), watch.view, now_ns=now_ns)
            if state is not None and self._telling is not None:
                self._telling.tell(state)

    # --- from people and services

    async def _requested(self, message: Message[DeviceRequest]) -> None:
        """Obey an operator's newest wish for a device."""
        request = message.event
        watch = self._watches.get(request.gpu)
        if watch is None:
            self.log.warning("request for a GPU that is not here", subject=message.address, gpu=request.gpu)
            return
        if request.enabled:
            self._disabled.pop(request.gpu, None)
            watch.send(Enable())
        else:
            self._disabled[request.gpu] = request.reason
            watch.send(Disable(reason=request.reason))
        self._keep(watch)

    async def _reported(self, message: Message[SloReport]) -> None:
        """Take an online service's word on its latency."""
        report = message.event
        if report.workload != message.names["workload"]:
            self.log.warning("report on another workload than its subject's", subject=message.address)
            return
        alert = self._declared.take(report)
        if alert is not None and self._telling is not None:
            self._telling.tell(alert)

    def _silent(self) -> str | None:
        """Why a GPU is not protected at present, or None."""
        stale_ns = self._section.stale_after_ms * 1_000_000
        now_ns = time.monotonic_ns()
        silent = [uuid for uuid, watch in self._watches.items() if now_ns - watch.beat_ns > stale_ns]
        return f"no look at {', '.join(silent)}" if silent else None


def _current(watch: DeviceWatch, now_ns: int) -> GpuSample:
    """Give the newest sample; of a GPU that does not answer, only its state."""
    view = watch.view
    if now_ns - view.time_ns > _FRESH_NS:
        return blank(watch.gpu.uuid, view.memory)
    taken_ns = max(0, time.time_ns() - (time.monotonic_ns() - view.time_ns))
    return with_offline(view.sample, view.jobs, watch.take_ended(), view.crowd, taken_ns=taken_ns)
