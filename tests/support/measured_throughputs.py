"""Public measured pairs as ours: throughputs of training jobs beside each other, by kind of GPU.

The file is gavel's ``simulation_throughputs.json`` (stanford-futuredata/gavel, MIT), which is not part of the project:
kind → job → ``null`` (alone) or another job → steps per second of both; 0 where the two did not fit.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from muxflow_decisions.speed import HISTORY, Feature, FeatureSpace, MeasuredPair, PairFacts, history_values


class Throughputs(msgspec.Struct, frozen=True, kw_only=True):
    """The file, read."""

    kinds: tuple[str, ...]
    jobs: tuple[str, ...]
    """On one GPU, such as ``ResNet-18 (batch size 16)``."""
    alone: Mapping[tuple[str, str], float]
    """Steps per second by kind and job; 0 where it did not run."""
    rows: tuple[MeasuredPair, ...]


def load(path: Path, kinds: Iterable[str] = ("v100", "p100", "k80")) -> Throughputs:
    """Read the file. Raises OSError, ValueError."""
    table = json.loads(path.read_text())
    chosen = tuple(kind for kind in kinds if kind in table)
    alone: dict[tuple[str, str], float] = {}
    rows = []
    for kind in chosen:
        jobs = {name: told for name, told in table[kind].items() if _gpus(name) == 1}
        alone |= {(kind, _job(name)): float(told["null"]) for name, told in jobs.items()}
        for name, told in jobs.items():
            for other, both in told.items():
                if other in jobs and told["null"] > 0:
                    rows.append(_row(kind, _job(name), _job(other), both[0], told["null"]))
    return Throughputs(kinds=chosen, jobs=tuple(sorted({job for _, job in alone})), alone=alone, rows=tuple(rows))


def family(job: str) -> str:
    """Give the model of a job, whatever its batch size."""
    return job.partition(" (")[0]


def space(data: Throughputs, training: Iterable[MeasuredPair]) -> FeatureSpace:
    """How these rows become vectors: speeds alone, on this kind and against others, and history.

    Nothing names a job. What is expected of a pair is the mean of its kind in the rows that are trained with.
    """
    means = kind_means(training)

    def expected(row: MeasuredPair) -> float:
        return means.get(row.gpu_kind, 0.5)

    def vector(row: MeasuredPair, background: Any) -> tuple[float, ...]:
        before = expected(row)
        return (
            float(data.kinds.index(row.gpu_kind)),
            *_alone(data, row.gpu_kind, row.offline_key),
            *_alone(data, row.gpu_kind, row.workload),
            before,
            *history_values(background, expected=before),
        )

    sides = [f"{side}_{what}" for side in ("own", "other") for what in ("speed", *(f"by_{k}" for k in data.kinds[1:]))]
    plain = (Feature("kind"), *map(Feature, sides), Feature("expected", 1))
    return FeatureSpace(features=(*plain, *HISTORY), expected=expected, vector=vector)


def kind_means(rows: Iterable[MeasuredPair]) -> dict[str, float]:
    """Mean normalized throughput of each kind."""
    by_kind: dict[str, list[float]] = {}
    for row in rows:
        if row.normalized_throughput is not None:
            by_kind.setdefault(row.gpu_kind, []).append(row.normalized_throughput)
    return {kind: sum(values) / len(values) for kind, values in by_kind.items()}


def _alone(data: Throughputs, kind: str, job: str) -> list[float]:
    """The logarithm of a job's speed on this kind, and how much faster the first kind is than each other one."""
    here = data.alone.get((kind, job), 0.0)
    first = data.alone.get((data.kinds[0], job), 0.0)
    others = [data.alone.get((other, job), 0.0) for other in data.kinds[1:]]
    return [
        math.log(here) if here > 0 else math.nan,
        *(first / other if first > 0 and other > 0 else math.nan for other in others),
    ]


def _row(kind: str, job: str, other: str, steps_per_s: float, alone_per_s: float) -> MeasuredPair:
    fits = steps_per_s > 0
    return MeasuredPair(
        offline_key=job,
        workload=other,
        gpu_kind=kind,
        facts=PairFacts(),
        normalized_throughput=steps_per_s / alone_per_s if fits else None,
        fits=fits,
    )


def _job(name: str) -> str:
    return str(ast.literal_eval(name)[0])


def _gpus(name: str) -> int:
    return int(ast.literal_eval(name)[1])
