"""What the evictor tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class EvictorMetrics:
    """Metrics of one evictor process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.orders = Counter("muxflow_evictor_orders", "Orders to clear a device.", ["gpu"], registry=registry)
        self.breaches = Counter(
            "muxflow_evictor_breaches", "Orders to stop a job that broke a rule.", ["gpu"], registry=registry
        )
        self.duration = Histogram(
            "muxflow_evictor_eviction_seconds",
            "Time from a decision to the last process gone.",
            buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120),
            registry=registry,
        )

    def observe(
        self, *, devices: Callable[[], float], under_way: Callable[[], float], alerts: Callable[[], float]
    ) -> None:
        """Read these whenever somebody asks."""
        for name, text, look in (
            ("muxflow_evictor_devices", "Devices that a living monitor watches.", devices),
            ("muxflow_evictor_under_way", "Evictions that are not over.", under_way),
            ("muxflow_evictor_alerts_waiting", "Alerts that the bus has not taken yet.", alerts),
        ):
            Gauge(name, text, registry=self._registry).set_function(look)
