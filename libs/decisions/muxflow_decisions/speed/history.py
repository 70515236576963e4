"""What earlier measurements say of a job and of a service, beside what their profiles do.

Two numbers carry most of it: by how much what was measured beside a service is above or below what was expected (its
effect on whoever is beside it), and by how much a job is above or below even that. A job that was measured beside one
service is then known to be sensitive or not beside all others: a single probe says more than its profile.

Effects are shrunk towards 0 as if one more measurement had found nothing: means of few measurements are noisy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from muxflow_decisions.speed.facts import MeasuredPair

_SHRINK_ROWS: Final = 1.0


class Effect(msgspec.Struct, frozen=True):
    """By how much measurements differ from what was expected."""

    residual: float = 0.0
    """Shrunk mean, in normalized throughput; positive is faster."""
    rows: int = 0
    """Measurements that it was taken over."""


NOTHING: Final = Effect()


class Background(msgspec.Struct, frozen=True):
    """What history has for one pair."""

    workload: Effect = NOTHING
    job: Effect = NOTHING


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Effects of all jobs and services, by name and kind of GPU."""

    workloads: Mapping[tuple[str, str], Effect] = {}
    jobs: Mapping[tuple[str, str], Effect] = {}

    def of(self, offline_key: str, workload: str, gpu_kind: str) -> Background:
        """Give what is known of a pair."""
        return Background(
            workload=self.workloads.get((workload, gpu_kind), NOTHING),
            job=self.jobs.get((offline_key, gpu_kind), NOTHING),
        )


def effect(residuals: Iterable[float]) -> Effect:
    """Sum up measurements."""
    values = list(residuals)
    return Effect(residual=sum(values) / (len(values) + _SHRINK_ROWS), rows=len(values))


def learn(rows: Iterable[MeasuredPair], expected: Callable[[MeasuredPair], float]) -> History:
    """Learn from measurements, in any order. Those without a throughput say nothing of speed."""
    measured = [row for row in rows if row.normalized_throughput is not None]
    workloads = {key: effect(map(residual_of(expected), beside)) for key, beside in by_workload(measured).items()}
    history = History(workloads=workloads)
    jobs = {key: effect(job_residuals(own, history, expected)) for key, own in by_job(measured).items()}
    return History(workloads=workloads, jobs=jobs)


def job_residuals(
    own: Iterable[MeasuredPair], history: History, expected: Callable[[MeasuredPair], float]
) -> list[float]:
    """Take from each measurement of a job what was expected, and what the service does to everybody."""
    residual = residual_of(expected)
    return [residual(row) - history.of(*row.name).workload.residual for row in own]


def residual_of(expected: Callable[[MeasuredPair], float]) -> Callable[[MeasuredPair], float]:
    """Measured less expected."""
    return lambda row: (row.normalized_throughput or 0.0) - expected(row)


def by_workload(rows: Iterable[MeasuredPair]) -> dict[tuple[str, str], list[MeasuredPair]]:
    """Group by service and kind, in the order of the rows."""
    groups: dict[tuple[str, str], list[MeasuredPair]] = {}
    for row in rows:
        groups.setdefault((row.workload, row.gpu_kind), []).append(row)
    return groups


def by_job(rows: Iterable[MeasuredPair]) -> dict[tuple[str, str], list[MeasuredPair]]:
    """Group by job and kind, in the order of the rows."""
    groups: dict[tuple[str, str], list[MeasuredPair]] = {}
    for row in rows:
        groups.setdefault((row.offline_key, row.gpu_kind), []).append(row)
    return groups
