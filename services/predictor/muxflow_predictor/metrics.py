"""What the predictor tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class PredictorMetrics:
    """Metrics of one predictor process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.pairs = Counter(
            "muxflow_predictor_pairs", "Pairs answered, by what the answer comes from.", ["basis"], registry=registry
        )
        self.answer_seconds = Histogram(
            "muxflow_predictor_answer_seconds",
            "Time to answer one question about pairs.",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2),
            registry=registry,
        )
        self.trainings = Counter("muxflow_predictor_trainings", "Trainings by outcome.", ["outcome"], registry=registry)
        self.evaluation = Gauge(
            "muxflow_predictor_model",
            "Figures of the model that serves, on held-out measurements.",
            ["figure"],
            registry=registry,
        )

    def observe(self, *, rows: Callable[[], float], generation: Callable[[], float]) -> None:
        """Read these whenever somebody asks."""
        for name, text, look in (
            ("muxflow_predictor_measurements", "Measurements that are kept.", rows),
            ("muxflow_predictor_generation", "Grows whenever answers may have changed.", generation),
        ):
            Gauge(name, text, registry=self._registry).set_function(look)
