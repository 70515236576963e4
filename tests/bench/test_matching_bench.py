"""The benchmark of the matching, on a small fleet: its figures hold together, and plainer ways are no better."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import structured_fleet
from muxflow_decisions.matching import MatchingPolicy
from muxflow_decisions.matching.solve import solve


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_matching", Path(__file__).with_name("bench_matching.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("jobs", "gpus"), [(120, 240), (150, 150)])
def test_classes_lose_nothing_against_one_dense_matrix(jobs: int, gpus: int, seed: int) -> None:
    made = structured_fleet.fleet(jobs, gpus, job_classes=40, gpu_classes=50, seed=seed)
    found = solve(structured_fleet.problem(made))
    threshold_permille = MatchingPolicy().fits_threshold_permille
    dense, placed = structured_fleet.dense(made, threshold_permille)
    assert len(found.assignments) == placed
    if placed == jobs:
        assert found.summary.throughput_permille == dense
    else:  # the queue says who waits, and the dense matrix does not know it
        assert found.summary.throughput_permille <= dense
    assert structured_fleet.greedy(made, threshold_permille)[1] <= placed


def test_figures_of_a_small_fleet_hold_together(bench: ModuleType) -> None:
    figures = bench.measure(300, 1, job_classes=60, gpu_classes=50)
    assert figures["gap"] == 0
    assert max(figures["random"], figures["memory"]) < 1
    assert figures["greedy_placed"] <= figures["placed"]


def test_staying_costs_little_and_spares_most_moves(bench: ModuleType) -> None:
    figures = bench.stay(300, job_classes=60, gpu_classes=50)
    assert figures["cost_20_moves"] <= figures["cost_5_moves"] <= figures["cost_0_moves"] < figures["as_new_moves"]
    assert figures["cost_20_throughput"] <= figures["cost_5_throughput"] <= figures["cost_0_throughput"] == 1
    assert figures["cost_5_throughput"] > 0.99
