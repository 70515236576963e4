"""From what is known of a pair to the numbers that a model is asked with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec

from muxflow_decisions.speed.assumed import expected
from muxflow_decisions.speed.facts import MeasuredPair, PairFacts
from muxflow_decisions.speed.history import Background

_MIB: Final = 2**20
_NAN: Final = math.nan


class Feature(msgspec.Struct, frozen=True):
    """One number of the vector. What is not known is NaN."""

    name: str
    monotone: int = 0
    """1: more of it never makes an offline job slower. -1: never faster. 0: either way."""


HISTORY: Final = (
    Feature("workload_residual", 1),
    Feature("workload_rows"),
    Feature("job_residual", 1),
    Feature("job_rows"),
    Feature("expected_by_history", 1),
)
"""What `history` has to say: residuals, and the numbers of measurements behind them."""
FEATURES: Final = (
    Feature("sm_share_pct", 1),
    Feature("online_activity_pct", -1),
    Feature("online_activity_p99_pct", -1),
    Feature("online_memory_of_gpu"),
    Feature("gpu_memory_mib"),
    Feature("offline_utilization_pct"),
    Feature("offline_sm_activity_pct"),
    Feature("offline_sm_occupancy_pct"),
    Feature("offline_bandwidth_pct"),
    Feature("offline_memory_of_gpu"),
    Feature("offline_busy_permille"),
    Feature("offline_kernel_time_us"),
    Feature("offline_launches_per_s"),
    Feature("expected", 1),
    *HISTORY,
)
"""The vector, in this order. ``…_of_gpu`` is relative to the device's memory; ``expected`` is `assumed.expected`."""


class FeatureSpace(msgspec.Struct, frozen=True, kw_only=True):
    """How measured pairs become vectors. There is one for the service; benchmarks on other data bring theirs."""

    features: tuple[Feature, ...]
    expected: Callable[[MeasuredPair], float]
    """What is expected of a pair before any measurement of its kind of job or service, 0 to 1."""
    vector: Callable[[MeasuredPair, Background], tuple[float, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    @property
    def monotone(self) -> tuple[int, ...]:
        return tuple(feature.monotone for feature in self.features)


def features(facts: PairFacts, background: Background) -> tuple[float, ...]:
    """Make the vector of one pair.

    Neither a larger share nor less online activity moves a monotone feature the wrong way: a model that keeps to the
    table never makes a job slower by giving it more.
    """
    share_pct = 100.0 if facts.sm_share_pct is None else float(facts.sm_share_pct)
    before = expected(facts)
    return (
        share_pct,
        _known(facts.online_activity_pct),
        _known(facts.online_activity_p99_pct),
        _of(facts.online_memory_bytes, facts.gpu_memory_bytes),
        facts.gpu_memory_bytes / _MIB if facts.gpu_memory_bytes else _NAN,
        _known(facts.offline_utilization_pct),
        _known(facts.offline_sm_activity_pct),
        _known(facts.offline_sm_occupancy_pct),
        _known(facts.offline_bandwidth_pct),
        _of(facts.offline_memory_bytes, facts.gpu_memory_bytes),
        _known(facts.offline_busy_permille),
        _known(facts.offline_kernel_time_us),
        _known(facts.offline_launches_per_s),
        before,
        *history_values(background, expected=before),
    )


def history_values(background: Background, *, expected: float) -> tuple[float, ...]:
    """Make the values of `HISTORY`."""
    job, workload = background.job, background.workload
    by_history = min(max(expected + workload.residual + job.residual, 0.0), 1.0)
    return (workload.residual, float(workload.rows), job.residual, float(job.rows), by_history)


PAIRS: Final = FeatureSpace(
    features=FEATURES,
    expected=lambda row: expected(row.facts),
    vector=lambda row, background: features(row.facts, background),
)
"""The service's own."""


def _known(value: float | None) -> float:
    return _NAN if value is None else float(value)


def _of(part: int | None, whole: int | None) -> float:
    return _NAN if part is None or not whole else part / whole
