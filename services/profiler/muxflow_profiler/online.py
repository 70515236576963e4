"""Services on GPUs, by time of day."""

from __future__ import annotations

from collections.abc import Callable

from muxflow.contracts import GpuSample, OnlineProfile
from muxflow_decisions.profiling import ForecastPolicy, OnlineSample, Service, online
from muxflow_profiler.fleet import Fleet, GpuKey

ServiceKey = tuple[str, str]
"""Workload, GPU kind."""


class OnlineSide:
    """Keeps what services do. `tell` gets what is to be published."""

    def __init__(self, fleet: Fleet, *, policy: ForecastPolicy, tell: Callable[[OnlineProfile], None]) -> None:
        self._fleet = fleet
        self._policy = policy
        self._tell = tell
        self._services: dict[ServiceKey, Service] = {}
        self._told: dict[ServiceKey, OnlineProfile] = {}

    @property
    def services(self) -> int:
        """Services that are known, each on a kind of GPU."""
        return len(self._services)

    def remember(self, event: OnlineProfile, *, stored_ns: int) -> None:
        """Take in what an earlier profiler told last, and when the server stored that."""
        key = event.workload, event.gpu_kind
        self._services[key] = online.restore(event, stored_ns=stored_ns, policy=self._policy)
        self._told[key] = event

    def take(self, key: GpuKey, sample: GpuSample, *, time_ns: int, stored_ns: int) -> None:
        """Take in a GPU's readings, as `OfflineSide.take`."""
        kind, served = self._fleet.kind(key), self._fleet.served(key, time_ns)
        if kind is None or served.workload is None or sample.online_activity_pct is None:
            return
        memory_bytes = None
        if sample.memory_used_bytes is not None and sample.offline_memory_bytes is not None:
            memory_bytes = max(0, sample.memory_used_bytes - sample.offline_memory_bytes)
        seen = OnlineSample(
            gpu=f"{key.node}/{key.gpu}",
            time_ns=stored_ns,
            activity_pct=sample.online_activity_pct,
            memory_bytes=memory_bytes,
        )
        service = self._services.get((served.workload, kind), Service())
        self._services[served.workload, kind] = online.take(service, seen, policy=self._policy)

    def publish(self, *, now_ns: int) -> None:
        """Tell what has changed since it was told last."""
        for (workload, kind), service in self._services.items():
            new = online.profile(service, workload=workload, gpu_kind=kind, now_ns=now_ns, policy=self._policy)
            if online.is_news(self._told.get((workload, kind)), new):
                self._told[workload, kind] = new
                self._tell(new)
