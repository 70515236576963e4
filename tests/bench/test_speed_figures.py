"""The parts of `bench_speed`, on a tiny file that is made up."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import bench_speed

import measured_throughputs as gavel

JOBS = {
    f"{model} (batch size {batch})": (speed, batch)
    for model, speed in (("A", 9.0), ("B", 5.0), ("C", 2.0), ("D", 1.0))
    for batch in (8, 16, 32)
}


def name(job: str, gpus: int = 1) -> str:
    return str((job, gpus))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two kinds, twelve jobs; fast ones disturb little, the largest two of a slow model do not fit together."""
    table: dict[str, dict[str, dict[str, float | list[float]]]] = {}
    for kind, factor in (("v100", 2.0), ("k80", 0.5)):
        rows: dict[str, dict[str, float | list[float]]] = {}
        for job, (speed, _) in JOBS.items():
            rows[name(job)] = {"null": speed * factor}
            rows[name(job, 2)] = {"null": 2 * speed * factor}
        for (one, (fast, batch)), (other, (slow, size)) in itertools.product(JOBS.items(), JOBS.items()):
            fits = batch * size < 32 * 32
            kept = (0.5 + 0.04 * slow, 0.5 + 0.04 * fast) if fits else (0.0, 0.0)
            rows[name(one)][name(other)] = [fast * factor * kept[0], slow * factor * kept[1]]
        table[kind] = rows
    path = tmp_path / "throughputs.json"
    path.write_text(json.dumps(table))
    return path


def test_pairs_are_read_relative_to_running_alone_and_pairs_that_do_not_fit_are_known(data: Path) -> None:
    read = gavel.load(data)
    assert read.kinds == ("v100", "k80")
    assert len(read.jobs) == 12
    assert len(read.rows) == 2 * 144
    row = next(row for row in read.rows if (row.offline_key, row.workload) == ("A (batch size 8)", "D (batch size 8)"))
    assert row.normalized_throughput == pytest.approx(0.54)
    unfit = [row for row in read.rows if row.fits is False]
    assert len(unfit) == 2 * 16
    assert {row.normalized_throughput for row in unfit} == {None}
    assert gavel.family("A (batch size 8)") == "A"


def test_pairs_that_were_not_measured_are_predicted_better_than_by_means(data: Path) -> None:
    read = gavel.load(data)
    told = bench_speed.held_out_pairs(read.rows, lambda rows: gavel.space(read, rows), threads=1)
    assert told["training_rows"] + told["judged_rows"] == 288
    assert told["model"]["mae"] < told["mean"]["mae"]
    assert 0 <= told["model"]["fits_auc"] <= 1
    assert json.loads(json.dumps(told)) == told


def test_jobs_that_were_not_measured_are_predicted_better_with_probes(data: Path) -> None:
    read = gavel.load(data)
    told = bench_speed.held_out_groups(
        read.rows, lambda rows: gavel.space(read, rows), gavel.family, rounds=2, threads=1
    )
    assert set(told) == {"judged_rows", "mean", "k0", "k1", "k2", "k4"}
    assert told["k4"]["model"]["mae"] < told["mean"]["mae"]
    assert told["k0"]["job_mean"] == told["mean"], "without a probe there is no mean of the job"
    assert told["judged_rows"] > 0


def test_folds_and_probes_are_the_same_every_time() -> None:
    groups = [f"job-{number}" for number in range(20)]
    dealt = bench_speed.folds(groups, 5)
    assert dealt == bench_speed.folds(list(reversed(groups)), 5)
    assert sorted(dealt.values()) == sorted([0, 1, 2, 3, 4] * 4)
