"""Measures how well speeds are predicted, with the training of the service; prints one JSON object.

With ``DATA``, on gavel's measured pairs (`measured_throughputs` says where they come from): jobs are told by their
speeds alone, and nothing names them. Without, on the shipped pairs, which were measured on simulated GPUs.

- ``held_out_pairs``: one pair in five was never measured, in neither order; both its jobs were, with others.
- ``held_out_jobs``: in each of five rounds a fifth of the jobs was never measured beside anybody. Then k = 0, 1, 2, 4
  probes: measurements of the job beside fixed services, those beside which the known jobs differ most; they are judged
  in none of the four.
- ``held_out_families``: the same, and no other batch size of the same model was measured either (gavel only).
- ``mean``: the mean of each kind instead; ``job_mean``: the mean of the job's measurements, where there are any.
- ``interval_share``: measurements within [low, high]; 0.8 is what is promised.
- ``fits_auc``: the classifier of whether two jobs fit, on held-out pairs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import measured_throughputs as gavel
from muxflow_decisions.speed import PAIRS, FeatureSpace, MeasuredPair, PairName, held_out, in_order
from muxflow_predictor import shipped
from muxflow_predictor.model import Prediction, Predictor
from muxflow_predictor.training import asked, evaluate, train

PROBES: Final = (0, 1, 2, 4)
ROUNDS: Final = 5
SEED: Final = 1

SpaceOf = Callable[[Sequence[MeasuredPair]], FeatureSpace]


def held_out_pairs(rows: Sequence[MeasuredPair], space_of: SpaceOf, *, threads: int) -> dict[str, Any]:
    """Predict pairs of known jobs."""
    judges = [row for row in rows if held_out(unordered(row))]
    training = [row for row in rows if not held_out(unordered(row))]
    space = space_of(training)
    model = Predictor(train(training, space, seed=SEED, threads=threads))
    known = [row for row in judges if row.normalized_throughput is not None]
    return {
        "training_rows": len(training),
        "judged_rows": len(judges),
        "model": judged(judges, model.predict(asked(judges, training, space))),
        "mean": figures(known, by_kind(known, training)),
        "job_mean": figures(known, by_job(known, training, training)),
    }


def unordered(row: MeasuredPair) -> PairName:
    """Name both sides of a measurement alike: one beside the other was measured with the other beside the one."""
    one, other = sorted((row.offline_key, row.workload))
    return PairName(one, other, row.gpu_kind)


def held_out_groups(
    rows: Sequence[MeasuredPair], space_of: SpaceOf, group_of: Callable[[str], str], *, rounds: int, threads: int
) -> dict[str, Any]:
    """Predict jobs of which nothing, or k probes, is known; the services beside them are known."""
    fold = folds(sorted({group_of(row.offline_key) for row in rows}), rounds)
    truths: list[MeasuredPair] = []
    answers: dict[int, list[Prediction]] = {k: [] for k in PROBES}
    means: list[float] = []
    job_means: dict[int, list[float]] = {k: [] for k in PROBES}
    for number in range(rounds):
        # A job that is not known is no known service either.
        beside_known = [row for row in rows if fold.get(group_of(row.workload)) != number]
        inside = [row for row in beside_known if fold[group_of(row.offline_key)] != number]
        outside = [
            row
            for row in beside_known
            if fold[group_of(row.offline_key)] == number and row.normalized_throughput is not None
        ]
        space = space_of(inside)
        model = Predictor(train(inside, space, seed=SEED, threads=threads))
        probes = fixed_services(inside)
        judged_rows = [row for row in outside if row.workload not in probes[: max(PROBES)]]
        truths += judged_rows
        means += by_kind(judged_rows, inside)
        for k in PROBES:
            seen = [row for row in outside if row.workload in probes[:k]]
            answers[k] += model.predict(asked(judged_rows, [*inside, *seen], space))
            job_means[k] += by_job(judged_rows, seen, inside)
    return {
        "judged_rows": len(truths),
        "mean": figures(truths, means),
        **{f"k{k}": {"model": judged(truths, answers[k]), "job_mean": figures(truths, job_means[k])} for k in PROBES},
    }


def folds(groups: Sequence[str], rounds: int) -> dict[str, int]:
    """Deal groups to rounds, in an order that their names do not tell."""
    shuffled = in_order_of_hash(groups)
    return {group: number % rounds for number, group in enumerate(shuffled)}


def in_order_of_hash(names: Sequence[str]) -> list[str]:
    """An arbitrary order that stays the same."""
    return sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())


def fixed_services(rows: Sequence[MeasuredPair]) -> list[str]:
    """Give the services to probe with: those beside which jobs differ most come first, they tell most."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.normalized_throughput is not None:
            found.setdefault(row.workload, []).append(row.normalized_throughput)
    often = [name for name, values in found.items() if 2 * len(values) >= max(map(len, found.values()))]
    return sorted(sorted(often), key=lambda name: -statistics.pvariance(found[name]))


def by_kind(rows: Sequence[MeasuredPair], training: Sequence[MeasuredPair]) -> list[float]:
    """Answer by the mean of the kind."""
    means = gavel.kind_means(training)
    return [means.get(row.gpu_kind, 0.5) for row in rows]


def by_job(rows: Sequence[MeasuredPair], own: Sequence[MeasuredPair], training: Sequence[MeasuredPair]) -> list[float]:
    """Answer by the mean of the job on that kind; where there is none, by the kind's."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in own:
        if row.normalized_throughput is not None:
            found.setdefault((row.offline_key, row.gpu_kind), []).append(row.normalized_throughput)
    return [
        sum(values) / len(values) if (values := found.get((row.offline_key, row.gpu_kind))) else mean
        for row, mean in zip(rows, by_kind(rows, training), strict=True)
    ]


def judged(rows: Sequence[MeasuredPair], answers: Sequence[Prediction]) -> dict[str, Any]:
    """Judge a model."""
    told = evaluate([each.speed for each in answers], [each.fits or 0.0 for each in answers], rows).told()
    if any(each.fits is None for each in answers):
        told.pop("fits_auc", None)
    within = [
        answer.low <= row.normalized_throughput <= answer.high
        for row, answer in zip(rows, answers, strict=True)
        if row.normalized_throughput is not None
    ]
    return {**{name: round(value, 3) for name, value in told.items()}, "interval_share": _share(within)}


def figures(rows: Sequence[MeasuredPair], values: Sequence[float]) -> dict[str, Any]:
    """Judge plain numbers."""
    told = evaluate(values, [0.0] * len(rows), rows).told()
    return {name: round(told[name], 3) for name in ("mae", "r2", "spearman") if name in told}


def _share(truths: Sequence[bool]) -> float | None:
    return round(sum(truths) / len(truths), 3) if truths else None


def on_gavel(path: Path, *, threads: int) -> dict[str, Any]:
    """Measure on public data."""
    data = gavel.load(path)

    def space_of(training: Sequence[MeasuredPair]) -> FeatureSpace:
        return gavel.space(data, training)

    rows = in_order(data.rows)
    families = len({gavel.family(job) for job in data.jobs})
    return {
        "data": path.name,
        "measured_on": ", ".join(data.kinds),
        "rows": len(rows),
        "jobs": len(data.jobs),
        "held_out_pairs": held_out_pairs(rows, space_of, threads=threads),
        "held_out_jobs": held_out_groups(rows, space_of, str, rounds=min(ROUNDS, len(data.jobs)), threads=threads),
        "held_out_families": held_out_groups(
            rows, space_of, gavel.family, rounds=min(len(data.jobs), families), threads=threads
        ),
    }


def on_shipped(*, threads: int) -> dict[str, Any]:
    """Measure on what is shipped."""
    rows = in_order(shipped.rows())

    def space_of(training: Sequence[MeasuredPair]) -> FeatureSpace:
        del training
        return PAIRS

    return {
        "data": shipped.FILE,
        "measured_on": "simulated GPUs",
        "rows": len(rows),
        "jobs": len({row.offline_key for row in rows}),
        "held_out_pairs": held_out_pairs(rows, space_of, threads=threads),
        "held_out_jobs": held_out_groups(rows, space_of, str, rounds=ROUNDS, threads=threads),
    }


def main() -> None:
    """Print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="gavel's simulation_throughputs.json; none: shipped pairs")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    result = on_gavel(options.data, threads=options.threads) if options.data else on_shipped(threads=options.threads)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
