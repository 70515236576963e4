"""The plan of what is measured, and one small measurement with everything that it takes."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from muxflow_predictor import shipped
from muxflow_predictor.sample.plan import BLOCKS, plan

WORKLOADS = Path(__file__).parents[3] / "examples/workloads"


def test_the_same_numbers_give_the_same_plan_and_another_seed_another_one() -> None:
    wanted = plan(kinds=("T4", "A100"), programs=5, services=4, pairs=10, seed=1)
    assert plan(kinds=("T4", "A100"), programs=5, services=4, pairs=10, seed=1) == wanted
    assert plan(kinds=("T4", "A100"), programs=5, services=4, pairs=10, seed=2) != wanted
    assert len(wanted.pairs) == 20


def test_a_plan_covers_programs_services_and_shares_on_every_kind() -> None:
    wanted = plan(kinds=tuple(BLOCKS), programs=14, services=10, pairs=120, seed=1)
    for kind in BLOCKS:
        pairs = [pair for pair in wanted.pairs if pair.kind == kind]
        assert {pair.offline for pair in pairs} == {program.name for program in wanted.offline}
        assert {pair.online for pair in pairs} == {program.name for program in wanted.online}
        shares = sorted(pair.sm_share_pct for pair in pairs)
        assert shares[0] < 15
        assert shares[-1] > 85
        assert max(after - before for before, after in pairwise(shares)) <= 5
    assert 2 <= sum(program.memory_bound for program in wanted.offline) <= 7
    assert {1.0 > program.activity > 0.0 for program in wanted.online} == {True}


def test_programs_ask_for_what_they_are_meant_to() -> None:
    wanted = plan(kinds=("A100",), programs=14, services=10, pairs=1, seed=1)
    for service in wanted.online:
        options = service.arguments("A100", seconds=10)
        asked = options["rate"] * options["kernels"] * options["kernel-us"] / 1e6
        assert asked == pytest.approx(service.activity, rel=0.05, abs=0.01)
        assert options["kernel-us"] <= 4500
    for program in wanted.offline:
        told = program.arguments("T4")
        assert 1 <= int(told["blocks"]) <= BLOCKS["T4"]
        assert (told["bound"] == "memory") == program.memory_bound
        assert 0 < int(told.get("copy-mib", 0)) * 2 < int(told["memory-mib"]) or not program.memory_bound


@pytest.mark.timeout(120)  # it starts a whole MuxFlow beside other tests
def test_a_pair_is_measured_under_the_whole_of_the_protection_and_not_twice(tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    command = [sys.executable, "-m", "muxflow_predictor.sample", "--output", str(output), "--kinds", "A100"]
    command += ["--programs", "1", "--services", "1", "--pairs", "1", "--settle-s", "0.5", "--measure-s", "0.5"]
    command += ["--waited-max", "1", "--workloads", str(WORKLOADS)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert first.returncode == 0, first.stderr
    (row,) = shipped.load(output)
    assert row.simulated
    assert row.fits
    assert (row.offline_key, row.workload, row.gpu_kind) == ("simulated/offline-00", "simulated-online-00", "A100")
    assert 0 <= (row.normalized_throughput or 0) <= 1.2
    assert row.facts.offline_launches_per_s
    assert row.facts.online_activity_p99_pct is not None
    before = output.read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert (again.returncode, output.read_bytes()) == (0, before)
