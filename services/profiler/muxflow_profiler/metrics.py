"""What the profiler tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge


class ProfilerMetrics:
    """Metrics of one profiler process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.samples = Counter("muxflow_profiler_samples", "Readings of GPUs that were taken in.", registry=registry)
        self.measurements = Counter(
            "muxflow_profiler_measurements",
            "Measurements of a job alone that are over, by how: confident, failed, interrupted.",
            ["outcome"],
            registry=registry,
        )
        self.published = Counter(
            "muxflow_profiler_published", "Profiles that the bus has taken.", ["subject"], registry=registry
        )

    def observe(
        self,
        *,
        measuring: Callable[[], float],
        offline: Callable[[], float],
        online: Callable[[], float],
        corun: Callable[[], float],
        waiting: Callable[[], float],
    ) -> None:
        """Read these whenever somebody asks."""
        profiles = Gauge("muxflow_profiler_profiles", "Profiles that are known.", ["kind"], registry=self._registry)
        for kind, look in (("offline", offline), ("online", online), ("corun", corun)):
            profiles.labels(kind).set_function(look)
        for name, text, look in (
            ("muxflow_profiler_measuring", "Attempts whose measurement alone is not over.", measuring),
            ("muxflow_profiler_profiles_waiting", "Profiles that the bus has not taken yet.", waiting),
        ):
            Gauge(name, text, registry=self._registry).set_function(look)
