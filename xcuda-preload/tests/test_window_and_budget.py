"""What is in flight, and how long the device works: held against the simulated device's own log."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from muxflow_decisions.device.gate import GateState, JobPhase
from muxflow_simgpu import KERNELS, Operation, device_busy, total_ns

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from conftest import GpuNode

_US = 1_000
_MS = 1_000_000
_S = 1_000_000_000


def _kernels(node: GpuNode, *processes: subprocess.Popen[str]) -> list[Operation]:
    pids = {process.pid for process in processes}
    return [
        operation for operation in node.machine.operations(0) if operation.pid in pids and operation.kind in KERNELS
    ]


def _finish(process: subprocess.Popen[str]) -> None:
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, ""), output


@pytest.mark.parametrize(
    ("arguments", "longest_us"),
    [("us=200", 200), ("us=20", 20), ("us=5,10000", 10_000), ("us=5,10000 alike", 10_000)],
)
def test_what_is_queued_is_done_within_the_window_and_one_kernel(
    gpu_node: GpuNode, programs: Path, arguments: str, longest_us: int
) -> None:
    gpu_node.open_gate(window_us=2000)
    process = gpu_node.start(programs / "program_kernels", *arguments.split(), "seconds=0.5")
    _finish(process)
    learned = _kernels(gpu_node, process)[20:]
    assert len(learned) > 20
    latest_ns = max(operation.ended_ns - operation.enqueued_ns for operation in learned)
    assert latest_ns <= (2000 + longest_us) * _US + 100 * _US


def test_a_window_wider_than_its_kernels_keeps_the_device_supplied(gpu_node: GpuNode, programs: Path) -> None:
    gpu_node.open_gate(window_us=50_000)
    process = gpu_node.start(programs / "program_kernels", "us=500", "seconds=0.7")
    _finish(process)
    kernels = _kernels(gpu_node, process)[50:]
    at_once = sum(after.started_ns == before.ended_ns for before, after in itertools.pairwise(kernels))
    assert at_once > 0.95 * len(kernels)


def test_kernels_that_are_not_known_yet_go_one_at_a_time(gpu_node: GpuNode, programs: Path) -> None:
    durations = ",".join(str(5000 + i) for i in range(12))
    process = gpu_node.start(programs / "program_kernels", f"us={durations}", "count=12")
    _finish(process)
    kernels = _kernels(gpu_node, process)
    assert len(kernels) == 12
    assert all(after.enqueued_ns >= before.ended_ns for before, after in itertools.pairwise(kernels))


def test_a_kernel_that_is_not_known_yet_goes_beside_no_other(gpu_node: GpuNode) -> None:
    gpu_node.open_gate(window_us=20_000)
    process = gpu_node.python(
        """
        from driver import *
        begin()
        [spin] = functions("spin")
        one, other = stream(), stream()
        for _ in range(6):
            launch(spin, 8_000_000, one)
            call("cuCtxSynchronize")
        launch(spin, 8_000_000, one)
        launch(spin, 1000, other, grid=2)
        """
    )
    _finish(process)
    known, unknown = sorted(_kernels(gpu_node, process)[6:], key=lambda kernel: kernel.enqueued_ns)
    assert unknown.enqueued_ns >= known.ended_ns


def test_a_kernel_that_waits_for_a_later_one_does_not_lock_the_job_up(gpu_node: GpuNode) -> None:
    told = gpu_node.output_of(
        """
        from driver import *
        begin()
        wait_for, set_word = functions("wait_for", "set")
        one, other, word = stream(), stream(), allocate(8)
        for round in range(3):
            call("cuMemcpyHtoD_v2", c_uint64(word), bytes(8), c_size_t(8))
            launch(wait_for, word, one)
            launch(set_word, word, other)
            call("cuCtxSynchronize")
        print("done")
        """
    )
    assert told == "done\n"


@pytest.mark.parametrize(
    "arguments",
    [
        "us=50",
        "us=50 sync",
        "us=1000",
        "us=20000",
        "us=50,5000",
        "us=200 streams=8",
        "us=300 threads=4",
        "us=100,50,20 graph",
    ],
)
def test_the_device_works_for_the_job_as_long_as_its_budget_says(
    gpu_node: GpuNode, programs: Path, arguments: str
) -> None:
    gpu_node.open_gate(budget_permille=200)
    process = gpu_node.start(programs / "program_kernels", *arguments.split(), "seconds=2")
    _finish(process)
    kernels = _kernels(gpu_node, process)
    start_ns = kernels[0].started_ns or 0
    shares = [
        total_ns(device_busy(kernels, from_ns, from_ns + _S)) / _S
        for from_ns in range(start_ns + 400 * _MS, start_ns + 900 * _MS, 100 * _MS)
    ]
    assert max(shares) <= 0.23
    assert max(shares) >= 0.17


def test_a_large_budget_is_used_up_by_kernels_whose_lengths_nobody_can_tell(gpu_node: GpuNode, programs: Path) -> None:
    gpu_node.open_gate(budget_permille=700)
    process = gpu_node.start(programs / "program_kernels", "us=50,5000", "alike", "seconds=1.2")
    _finish(process)
    kernels = _kernels(gpu_node, process)
    start_ns = kernels[0].started_ns or 0
    shares = [
        total_ns(device_busy(kernels, from_ns, from_ns + 300 * _MS)) / (300 * _MS)
        for from_ns in range(start_ns + 200 * _MS, start_ns + 900 * _MS, 50 * _MS)
    ]
    assert max(shares) >= 0.68


def test_processes_of_a_job_share_its_budget_and_none_is_left_out(gpu_node: GpuNode, programs: Path) -> None:
    gpu_node.open_gate(budget_permille=200)
    processes = [gpu_node.start(programs / "program_kernels", "us=1000", "seconds=2") for _ in range(3)]
    for process in processes:
        _finish(process)
    kernels = _kernels(gpu_node, *processes)
    start_ns = (kernels[0].started_ns or 0) + 500 * _MS
    assert 0.16 <= total_ns(device_busy(kernels, start_ns, start_ns + _S)) / _S <= 0.23
    assert min(len(_kernels(gpu_node, process)) for process in processes) > 0.1 * len(kernels)


def test_a_job_that_trickles_has_its_own_small_budget(gpu_node: GpuNode, programs: Path) -> None:
    gpu_node.trickle()
    gpu_node.order(GateState.TRICKLE, JobPhase.CHECKPOINT, budget_permille=50)
    process = gpu_node.start(programs / "program_kernels", "us=1000", "seconds=1.6")
    _finish(process)
    kernels = _kernels(gpu_node, process)
    start_ns = (kernels[0].started_ns or 0) + 400 * _MS
    assert 0.02 <= total_ns(device_busy(kernels, start_ns, start_ns + _S)) / _S <= 0.08


@pytest.mark.parametrize("arguments", ["us=300", "us=300 sync", "us=100,2000 streams=4"])
def test_the_job_page_tells_how_long_the_device_worked(gpu_node: GpuNode, programs: Path, arguments: str) -> None:
    process = gpu_node.start(programs / "program_kernels", *arguments.split(), "seconds=0.8")
    _finish(process)
    kernels = _kernels(gpu_node, process)
    slot = gpu_node.slot(process.pid)
    assert slot is not None
    assert (slot.launches, slot.inflight, slot.inflight_ns) == (len(kernels), 0, 0)
    truth_ns = total_ns(device_busy(kernels, 0, kernels[-1].ended_ns + 1))
    assert slot.busy_ns == pytest.approx(truth_ns, rel=0.05)
