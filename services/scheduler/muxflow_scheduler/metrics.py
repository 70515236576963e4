"""What the scheduler tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class SchedulerMetrics:
    """Metrics of one scheduler process, over all its terms."""

    def __init__(self, registry: CollectorRegistry, *, solver_restarts: Callable[[], float]) -> None:
        self.leading = Gauge("muxflow_scheduler_leading", "1 while this process leads.", registry=registry)
        self.term = Gauge("muxflow_scheduler_term", "Fencing term of the newest lead.", registry=registry)
        self.submissions = Counter(
            "muxflow_scheduler_submissions", "Submissions by answer.", ["answer"], registry=registry
        )
        self.ended = Counter("muxflow_scheduler_jobs_ended", "Jobs ended, by outcome.", ["outcome"], registry=registry)
        self.placements = Counter("muxflow_scheduler_placements", "Attempts placed.", registry=registry)
        self.moves = Counter("muxflow_scheduler_moves", "Running jobs that were given another GPU.", registry=registry)
        self.solves_failed = Counter(
            "muxflow_scheduler_solves_failed", "Solves without a result: no proof, or no solver.", registry=registry
        )
        restarts = Gauge(
            "muxflow_scheduler_solver_restarts",
            "Solver processes that died or took too long, since this process began.",
            registry=registry,
        )
        restarts.set_function(solver_restarts)
        self.nodes_lost = Counter("muxflow_scheduler_nodes_lost", "Nodes declared lost.", registry=registry)
        self.match_seconds = Histogram(
            "muxflow_scheduler_match_seconds",
            "Time to solve one matching, the way to the solver's process and back included.",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=registry,
        )
