"""The profiler: measures jobs alone, services by time of day, and jobs beside services, from telemetry."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import Any, Final

from muxflow.bus import Bus, Message
from muxflow.contracts import (
    GpuDecision,
    NodeState,
    NodeTelemetry,
    OfflineProfile,
    OnlineProfile,
    OnlineState,
    Subject,
)
from muxflow.contracts.catalogue import (
    DECISIONS,
    NODES_STATE,
    ONLINE_STATE,
    PROFILES_CORUN,
    PROFILES_OFFLINE,
    PROFILES_ONLINE,
    TELEMETRY,
)
from muxflow.health import Health
from muxflow.service import Service
from muxflow_profiler.fleet import Fleet, GpuKey
from muxflow_profiler.metrics import ProfilerMetrics
from muxflow_profiler.offline import OfflineSide
from muxflow_profiler.online import OnlineSide
from muxflow_profiler.settings import ProfilerSettings
from muxflow_profiler.telling import Telling

_STOP_S: Final = 3.0


class Profiler(Service[ProfilerSettings]):
    """Measures workloads from telemetry and publishes their profiles. One per cluster."""

    name = "profiler"

    def __init__(self, settings: ProfilerSettings, bus: Bus, health: Health) -> None:
        super().__init__(settings, bus, health)
        section = settings.profiler
        self._metrics = ProfilerMetrics(self.registry)
        self._telling = Telling(bus, on_published=self._published)
        self._fleet = Fleet()
        self._offline = OfflineSide(
            self._fleet,
            alone_policy=section.alone,
            corun_policy=section.corun,
            tell_offline=self._tell_offline,
            tell_corun=self._telling.tell,
            on_outcome=lambda outcome: self._metrics.measurements.labels(outcome).inc(),
        )
        self._online = OnlineSide(self._fleet, policy=section.online, tell=self._telling.tell)
        self._replayed = False

    async def start(self) -> None:
        """Learn what was told last, then read the telemetry that is kept, and go on."""
        self.health.require("telemetry", lambda: None if self._replayed else "reading what is kept")
        self._metrics.observe(
            measuring=lambda: self._offline.measuring,
            offline=lambda: len(self._offline.profiles),
            online=lambda: self._online.services,
            corun=lambda: len(self._offline.coruns),
            waiting=lambda: self._telling.waiting,
        )
        self.spawn(self._telling.run(), name="telling")
        subjects = [PROFILES_OFFLINE, PROFILES_ONLINE, PROFILES_CORUN]
        profiles = await self.bus.read(subjects, self._remember, start="last")
        await profiles.caught_up()
        await profiles.stop()
        states = await self.bus.read([NODES_STATE, ONLINE_STATE, DECISIONS], self._state_changed, start="last")
        await states.caught_up()
        await self.bus.read(TELEMETRY, self._measure, start="all", on_caught_up=self._begin_to_publish)

    async def stop(self, received: signal.Signals) -> None:
        """Tell what is known of services, for the next profiler to go on from."""
        del received
        if self._replayed:
            self._online.publish(now_ns=time.time_ns())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self._telling.told()

    # --- from the bus

    def _remember(self, message: Message[Any]) -> None:
        event = message.event
        if isinstance(event, OnlineProfile):
            self._online.remember(event, stored_ns=min(message.time_ns, event.time_ns))
        else:
            self._offline.remember(event)

    def _state_changed(self, message: Message[Any]) -> None:
        match message.event:
            case NodeState() as state:
                self._fleet.take_node(state)
            case OnlineState() as online:
                self._fleet.take_online(online)
            case GpuDecision() as decision:
                key = GpuKey(decision.node, decision.gpu)
                for slot, withdrawn in self._fleet.take_decision(decision):
                    self._offline.gone(key, slot, withdrawn=withdrawn, stored_ns=message.time_ns)

    def _measure(self, message: Message[NodeTelemetry]) -> None:
        telemetry = message.event
        for sample in telemetry.gpus:
            key = GpuKey(telemetry.node, sample.gpu)
            time_ns = sample.taken_ns or telemetry.time_ns
            self._offline.take(key, sample, time_ns=time_ns, stored_ns=message.time_ns)
            self._online.take(key, sample, time_ns=time_ns, stored_ns=message.time_ns)
        self._metrics.samples.inc(len(telemetry.gpus))

    # --- to the bus

    def _begin_to_publish(self) -> None:
        """Only from here on is anything known of services."""
        self._replayed = True
        self.spawn(self._publish(), name="publish")

    async def _publish(self) -> None:
        while True:
            self._online.publish(now_ns=time.time_ns())
            await asyncio.sleep(self.settings.profiler.publish_s)

    def _tell_offline(self, profile: OfflineProfile) -> None:
        self.log.info(
            "measured alone",
            key=profile.key,
            gpu_kind=profile.gpu_kind,
            launches_per_s=profile.launches_per_s,
            measured_s=profile.measured_s,
            failure=profile.failure,
        )
        self._telling.tell(profile)

    def _published(self, subject: Subject) -> None:
        self._metrics.published.labels(subject.name).inc()
