"""What the executor tells Prometheus."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge

from muxflow_decisions.node import LocalState
from muxflow_executor.node_lease import NodeLease
from muxflow_executor.process_runner import ProcessRunner


class ExecutorMetrics:
    """Metrics of one executor process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.starts = Counter("muxflow_executor_starts", "Attempts started.", registry=registry)
        self.stops = Counter("muxflow_executor_stops", "Attempts stopped, by cause.", ["cause"], registry=registry)
        self.steps = Counter(
            "muxflow_executor_stop_steps", "Steps that stops have come to.", ["step"], registry=registry
        )
        self.exits = Counter("muxflow_executor_exits", "Attempts ended, by outcome.", ["outcome"], registry=registry)
        self.leases_lost = Counter("muxflow_executor_leases_lost", "Times the lease was lost.", registry=registry)

    def observe(self, runner: ProcessRunner, lease: NodeLease) -> None:
        """Read these whenever somebody asks."""
        attempts = Gauge("muxflow_executor_attempts", "Attempts by state.", ["state"], registry=self._registry)
        for state in LocalState:
            attempts.labels(state.value).set_function(partial(_count, runner, state))
        remaining = Gauge(
            "muxflow_executor_lease_remaining_seconds", "Time until the lease ends.", registry=self._registry
        )
        remaining.set_function(lambda: lease.remaining_s)


def _count(runner: ProcessRunner, state: LocalState) -> float:
    return sum(run.local.state is state for run in list(runner.runs.values()))
