"""From measured pairs to training examples.

A model is asked about jobs that were measured never, once or often, so it must have seen all of that. Each row becomes
a few examples, each with the history that it would have if only some of the other measurements were there: of other
pairs, for a model that sees the answer in the question learns nothing else.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import Final, TypeVar

import msgspec

from muxflow_decisions.speed.facts import MeasuredPair, PairName
from muxflow_decisions.speed.features import FeatureSpace
from muxflow_decisions.speed.history import (
    Background,
    History,
    by_job,
    by_workload,
    effect,
    job_residuals,
    learn,
    residual_of,
)

COPIES: Final = 4
_JOB_ROWS: Final = (0, 1, 2, 4, 8)
"""How many measurements of the job itself an example may know of, each as likely: what a young cluster has."""
_WORKLOAD_ROWS: Final = (0, 2, 8, 32)
"""The same for the service: it has many neighbours, one after the other."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One vector and what is to be predicted."""

    values: tuple[float, ...]
    target: float
    name: PairName
    job_rows: int
    """Measurements of the job beside others that it knew of."""


R = TypeVar("R")


def examples(rows: Iterable[MeasuredPair], space: FeatureSpace, *, seed: int, copies: int = COPIES) -> list[Example]:
    """Make `copies` of each row that has a throughput. The order of the rows does not matter."""
    measured = [row for row in in_order(rows) if row.normalized_throughput is not None]
    history = learn(measured, space.expected)
    jobs, workloads = by_job(measured), by_workload(measured)
    found = []
    for row in measured:
        chance = random.Random(f"{seed}|{row.name}|{row.time_ns}|{row.facts}")  # not by what is to be predicted
        own = [other for other in jobs[row.offline_key, row.gpu_kind] if other.workload != row.workload]
        beside = [other for other in workloads[row.workload, row.gpu_kind] if other.offline_key != row.offline_key]
        for _ in range(copies):
            background = _seen(
                _some(own, chance.choice(_JOB_ROWS), chance),
                _some(beside, chance.choice(_WORKLOAD_ROWS), chance),
                history,
                space,
            )
            found.append(
                Example(
                    values=space.vector(row, background),
                    target=row.normalized_throughput or 0.0,
                    name=row.name,
                    job_rows=background.job.rows,
                )
            )
    return found


def questions(rows: Iterable[MeasuredPair], history: History, space: FeatureSpace) -> list[tuple[float, ...]]:
    """Make the vectors of pairs whose measurements are in nobody's history."""
    return [space.vector(row, history.of(*row.name)) for row in rows]


def in_order(rows: Iterable[MeasuredPair]) -> list[MeasuredPair]:
    """Sort by what they say, so that a permutation gives the same model."""
    return sorted(rows, key=lambda row: (row.name, row.time_ns, msgspec.json.encode(row)))


def held_out(name: PairName, *, one_in: int = 5) -> bool:
    """Whether a pair is kept for judging. By its name, so that it is on the same side for ever."""
    digest = hashlib.blake2b("\0".join(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest) % one_in == 0


def _seen(
    own: Sequence[MeasuredPair], beside: Sequence[MeasuredPair], history: History, space: FeatureSpace
) -> Background:
    return Background(
        workload=effect(map(residual_of(space.expected), beside)),
        job=effect(job_residuals(own, history, space.expected)),
    )


def _some(items: Sequence[R], count: int, chance: random.Random) -> Sequence[R]:
    return items if count >= len(items) else chance.sample(items, count)
