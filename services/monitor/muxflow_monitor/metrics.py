"""What the monitor tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from muxflow.contracts import DeviceCondition
from muxflow_decisions.device import Gate

_LOOK_S: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)


class MonitorMetrics:
    """Metrics of one monitor process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._looks = Histogram(
            "muxflow_monitor_look_seconds",
            "Time of one look: reading, deciding, writing the page.",
            ["gpu"],
            buckets=_LOOK_S,
            registry=registry,
        )
        self._missed = Counter(
            "muxflow_monitor_looks_missed", "Looks that a late one swallowed.", ["gpu"], registry=registry
        )
        self._faults = Counter("muxflow_monitor_faults", "Faults told, by kind.", ["gpu", "kind"], registry=registry)
        self._condition = Gauge(
            "muxflow_device_condition", "1 for the state that the device is in.", ["gpu", "state"], registry=registry
        )
        self._gate = Gauge(
            "muxflow_device_gate", "The device's gate: 0 frozen, 1 trickle, 2 open.", ["gpu"], registry=registry
        )
        self._budget = Gauge(
            "muxflow_device_budget_permille",
            "Cap on the share of time in which offline operations run.",
            ["gpu"],
            registry=registry,
        )
        self._outbox = Gauge(
            "muxflow_monitor_outbox_events", "Events that the bus has not acked yet.", registry=registry
        )

    def of(self, gpu: str) -> GpuMetrics:
        """Give those of one GPU."""
        return GpuMetrics(
            looked=self._looks.labels(gpu).observe,
            missed=self._missed.labels(gpu).inc,
            fault=lambda kind: self._faults.labels(gpu, kind).inc(),
        )

    def observe(self, gpu: str, *, condition: Callable[[], DeviceCondition], gate: Callable[[], Gate]) -> None:
        """Read these whenever somebody asks."""
        for state in DeviceCondition:
            self._condition.labels(gpu, state.value).set_function(
                partial(lambda state: float(condition() is state), state)
            )
        self._gate.labels(gpu).set_function(lambda: float(gate().state))
        self._budget.labels(gpu).set_function(lambda: float(gate().budget_permille))

    def observe_outbox(self, pending: Callable[[], int]) -> None:
        """The same of the outbox."""
        self._outbox.set_function(lambda: float(pending()))


class GpuMetrics:
    """What one GPU's thread counts."""

    def __init__(
        self, *, looked: Callable[[float], None], missed: Callable[[float], None], fault: Callable[[str], None]
    ) -> None:
        self.looked = looked
        """Takes seconds."""
        self.missed = missed
        """Takes how many."""
        self.fault = fault
        """Takes the kind."""
