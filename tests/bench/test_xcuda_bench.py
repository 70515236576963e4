"""The benchmark of the preload library, in small: its figures are those that are promised, and say what they mean."""

from __future__ import annotations

import json
import shutil
from typing import Any

import bench_xcuda
import pytest
from xcuda import device_time, launches, stops
from xcuda.node import WINDOW_US, build, gpu, node
from xcuda.targets import TARGETS, targets

from muxflow_simgpu import Operation, OperationKind

PROMISED = {
    "launch_instructions_added", "driver_calls_per_launch_added", "launch_ns_added", "launch_ns_added_2threads",
    "alloc_free_ns_added", "alloc_free_ns_added_5000_live", "alloc_free_ns_added_100000_live", "stop_ms_p99",
    "stop_ms_p99_mixed", "stop_ms_p99_unbounded", "window_throughput_ratio", "budget_error_points",
    "budget_error_points_by_case", "beacon_instructions", "beacon_stop_us_p99", "startup_ms_added", "window_us",
    "host_noise", "device", "targets",
}  # fmt: skip
MS = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    build()


def kernel(enqueued_ms: float, started_ms: float, ended_ms: float) -> Operation:
    enqueued_ns, started_ns, ended_ns = (int(each * MS) for each in (enqueued_ms, started_ms, ended_ms))
    return Operation(
        number=1, pid=1, tag="", kind=OperationKind.KERNEL, enqueued_ns=enqueued_ns, started_ns=started_ns,
        ended_ns=ended_ns, ran_ns=ended_ns - started_ns, work_ns=ended_ns - started_ns, context=0, stream=0,
        cancelled=False, sm_share=1.0, bandwidth=0.0,
    )  # fmt: skip


def test_a_stop_is_over_with_the_last_kernel_from_before_the_gate_opened() -> None:
    kernels = [kernel(1, 2, 3), kernel(4, 5, 6), kernel(8, 9, 11), kernel(21, 21, 22)]
    assert stops.stop_ns(stops.Stop(10 * MS, 20 * MS), kernels) == 1 * MS
    assert stops.stop_ns(stops.Stop(12 * MS, 20 * MS), kernels) == 0


def test_the_error_of_a_budget_is_that_of_the_worst_second() -> None:
    even = [kernel(at, at, at + 2) for at in range(1, 1800, 10)]
    assert device_time.error_points(even, 200) == pytest.approx(0, abs=0.3)
    late = [each for each in even if not 500 * MS < each.enqueued_ns < 550 * MS]
    assert device_time.error_points(late, 200) == pytest.approx(-1, abs=0.3)


def test_a_bound_may_follow_from_another_figure() -> None:
    found: dict[str, Any] = dict.fromkeys(TARGETS, 1.0)
    found |= {"window_us": 2000, "driver_calls_per_launch_added": 0.1}
    found |= {"launch_ns_added": 1.0, "launch_ns_added_2threads": 2.5}
    told = targets(found)
    assert [name for name, target in told.items() if not target["reached"]] == ["launch_ns_added_2threads"]
    assert told["stop_ms_p99"] == {"at_most": 2.2, "reached": True}
    assert told["window_throughput_ratio"] == {"at_least": 0.98, "reached": True}


def test_calls_to_the_driver_are_counted() -> None:
    with node() as kept:
        few = launches.calls(kept)
    assert 0 < few["driver_calls_per_launch_added"] <= 0.1


def test_a_job_is_stopped_again_and_again() -> None:
    with gpu() as simulated, node() as kept:
        found_ms = stops.stops_ms(simulated, kept, stops.CASES["0.2 ms"], 5)
    assert len(found_ms) == 5
    assert 0 < max(found_ms) <= WINDOW_US / 1e3 + 100  # on a host that may be busy


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="instructions are counted by valgrind")
def test_the_last_line_has_every_figure_that_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    few = "--fewer --repeat 1 --starts 3 --stops 2 --rounds 1 --seconds 0.3 --budget-seconds 1.5"
    bench_xcuda.main(few.split())
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found.keys() >= PROMISED
    assert found["targets"].keys() == TARGETS.keys()
    assert found["device"] == "simulated"
