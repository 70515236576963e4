"""NVML's view of programs that run: what it shows, how coarsely, and what it cannot show."""

import itertools
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from cuda_program import CudaProgram
from muxflow_simgpu import SimulatedMachine, device_busy, total_ns

MILLISECOND_NS = 1_000_000
LONG_NS = 60_000 * MILLISECOND_NS
"""Longer than any of these tests: such a kernel runs until its program is killed."""
PERIOD_NS = {"H200": 166_666_667, "A100": 500 * MILLISECOND_NS, "T4": 1000 * MILLISECOND_NS}
DEADLINE_S = 20
NO_DATA = 21


@pytest.fixture
def program(machine: SimulatedMachine) -> Iterator[CudaProgram]:
    """A program with a context on the machine's first device, an H200."""
    machine.start("H200")
    with CudaProgram(machine.environment(), tag="program") as program:
        assert program.do("context") == 0
        yield program


@pytest.fixture
def gpu(program: CudaProgram, nvml: ModuleType) -> Any:
    """NVML's handle of that device."""
    nvml.nvmlInit()
    return nvml.nvmlDeviceGetHandleByIndex(0)


def realtime_offset_us() -> int:
    return (time.time_ns() - time.monotonic_ns()) // 1000


def samples(nvml: ModuleType, gpu: Any, after_us: int = 0) -> dict[int, int]:
    """Utilization of each window, by the time when it ended, µs since 1970."""
    _, found = nvml.nvmlDeviceGetSamples(gpu, nvml.NVML_GPU_UTILIZATION_SAMPLES, after_us)
    return {sample.timeStamp: sample.sampleValue.uiVal for sample in found}


def newer_samples(nvml: ModuleType, gpu: Any, after_us: int) -> dict[int, int]:
    """Waits for a window that ended after this time."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            return samples(nvml, gpu, after_us)
        except nvml.NVMLError_NotFound:
            time.sleep(0.01)
    raise AssertionError("no window has ended")


def windows_until(nvml: ModuleType, gpu: Any, time_ns: int) -> dict[int, int]:
    """Waits until the window of this time (CLOCK_MONOTONIC) has ended, and gives all that have."""
    newer_samples(nvml, gpu, time_ns // 1000 + realtime_offset_us())
    return samples(nvml, gpu)


def test_utilization_is_told_window_by_window_as_the_device_was_busy(
    program: CudaProgram, gpu: Any, nvml: ModuleType, machine: SimulatedMachine
) -> None:
    assert program.do("launch", 700 * MILLISECOND_NS, 10, 0) == 0
    assert program.do("wait") == 0
    operation = machine.operations(0)[0]
    assert operation.started_ns is not None
    found = windows_until(nvml, gpu, operation.ended_ns)
    offset_us = realtime_offset_us()
    period_ns = PERIOD_NS["H200"]
    for end_us, percent in found.items():
        end_ns = (end_us - offset_us) * 1000
        busy = device_busy([operation], end_ns - period_ns, end_ns)
        # The model notes its totals every 10 ms and interpolates: 6 % of such a window.
        assert percent == pytest.approx(100 * total_ns(busy) / period_ns, abs=4)
    assert 100 in found.values()
    ends = sorted(found)
    steps = [later - earlier for earlier, later in itertools.pairwise(ends)]
    assert steps == [pytest.approx(period_ns / 1000, abs=2)] * len(steps)


@pytest.mark.parametrize("kind", PERIOD_NS)
def test_the_newest_window_ended_within_its_period(kind: str, nvml: ModuleType, machine: SimulatedMachine) -> None:
    machine.start(kind)
    nvml.nvmlInit()
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    newer_samples(nvml, gpu, 0)  # the device is older than its first window
    before_us = time.time_ns() // 1000
    newest = max(samples(nvml, gpu))
    after_us = time.time_ns() // 1000
    slack_us = 1000  # NVML's clock and ours are read at different times
    assert before_us - PERIOD_NS[kind] // 1000 - slack_us <= newest <= after_us + slack_us


def test_the_rate_is_that_of_the_newest_window(program: CudaProgram, gpu: Any, nvml: ModuleType) -> None:
    assert program.do("launch", 250 * MILLISECOND_NS, 10, 0) == 0
    assert program.do("wait") == 0
    deadline = time.monotonic() + DEADLINE_S
    while True:
        before = samples(nvml, gpu)
        rate = nvml.nvmlDeviceGetUtilizationRates(gpu).gpu
        if before == samples(nvml, gpu) and rate > 0:  # no window ended meanwhile
            break
        assert time.monotonic() < deadline
    assert rate == before[max(before)]


def test_samples_that_were_seen_are_not_told_again(program: CudaProgram, gpu: Any, nvml: ModuleType) -> None:
    newest = max(windows_until(nvml, gpu, time.monotonic_ns()))
    assert min(newer_samples(nvml, gpu, newest)) > newest


def process_samples(nvml: ModuleType, gpu: Any, after_us: int) -> list[Any]:
    try:
        return list(nvml.nvmlDeviceGetProcessUtilization(gpu, after_us))
    except nvml.NVMLError_NotFound:
        return []


def test_only_processes_that_ran_something_have_a_utilization(
    program: CudaProgram, gpu: Any, nvml: ModuleType, machine: SimulatedMachine
) -> None:
    with CudaProgram(machine.environment()) as idle:
        assert idle.do("context") == 0
        assert program.do("launch", LONG_NS, 40, 30) == 0
        deadline = time.monotonic() + DEADLINE_S
        while not (found := process_samples(nvml, gpu, 0)) or found[0].smUtil < 100:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [(sample.pid, sample.smUtil, sample.memUtil) for sample in found] == [(program.pid, 100, 30)]
        again = process_samples(nvml, gpu, found[0].timeStamp)
        assert all(sample.timeStamp > found[0].timeStamp for sample in again)


def test_memory_of_a_process_is_listed_with_its_context_and_gone_with_it(
    program: CudaProgram, gpu: Any, nvml: ModuleType, machine: SimulatedMachine
) -> None:
    assert program.do("allocate", 2 << 30) == 0
    (client,) = machine.clients(0)
    (process,) = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    assert process.pid == program.pid
    assert process.usedGpuMemory == (2 << 30) + client.context_bytes
    assert nvml.nvmlDeviceGetMemoryInfo(gpu, nvml.nvmlMemory_v2).used == process.usedGpuMemory
    assert nvml.nvmlDeviceGetMPSComputeRunningProcesses(gpu) == []
    assert nvml.nvmlDeviceGetGraphicsRunningProcesses(gpu) == []
    program.kill()
    deadline = time.monotonic() + DEADLINE_S
    while nvml.nvmlDeviceGetComputeRunningProcesses(gpu):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert nvml.nvmlDeviceGetMemoryInfo(gpu, nvml.nvmlMemory_v2).used == 0


def test_a_busy_gpu_runs_at_its_boost_clock_and_draws_power(program: CudaProgram, gpu: Any, nvml: ModuleType) -> None:
    idle_mw = nvml.nvmlDeviceGetPowerUsage(gpu)
    energy_mj = nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    assert program.do("launch", LONG_NS, 100, 50) == 0
    deadline = time.monotonic() + DEADLINE_S
    while nvml.nvmlDeviceGetPowerUsage(gpu) < 2 * idle_mw:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert nvml.nvmlDeviceGetPowerUsage(gpu) <= nvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) > energy_mj
    assert nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM) == 1980
    assert nvml.nvmlDeviceGetPerformanceState(gpu) == 0
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) == 0


def gpm(nvml: ModuleType, first: Any, second: Any, *metrics: int) -> list[tuple[int, float]]:
    """Result and value of each metric between two samples."""
    question = nvml.c_nvmlGpmMetricsGet_t()
    question.version = nvml.NVML_GPM_METRICS_GET_VERSION
    question.numMetrics = len(metrics)
    question.sample1, question.sample2 = first, second
    for index, metric in enumerate(metrics):
        question.metrics[index].metricId = metric
    nvml.nvmlGpmMetricsGet(question)
    return [(answer.nvmlReturn, answer.value) for answer in question.metrics[: len(metrics)]]


def test_gpm_averages_between_samples(program: CudaProgram, gpu: Any, nvml: ModuleType) -> None:
    wanted = (
        nvml.NVML_GPM_METRIC_GRAPHICS_UTIL,
        nvml.NVML_GPM_METRIC_SM_UTIL,
        nvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
        nvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    )
    assert program.do("launch", LONG_NS, 60, 25) == 0
    samples = [nvml.nvmlGpmSampleAlloc() for _ in range(3)]
    for sample in samples:
        time.sleep(0.12)  # samples less than 100 ms apart may be of one refresh
        nvml.nvmlGpmSampleGet(gpu, sample)
    answers = gpm(nvml, samples[0], samples[2], *wanted)
    assert [result for result, _ in answers] == [0, 0, 0, nvml.NVML_ERROR_NOT_SUPPORTED]
    assert [value for _, value in answers[:3]] == pytest.approx([100, 60, 25])
    for sample in samples:
        nvml.nvmlGpmSampleFree(sample)


def test_gpm_samples_of_one_refresh_say_nothing(program: CudaProgram, gpu: Any, nvml: ModuleType) -> None:
    first, second = nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()
    results = set()
    for _ in range(3):  # a refresh may come between two samples, but hardly ever between three pairs
        nvml.nvmlGpmSampleGet(gpu, first)
        nvml.nvmlGpmSampleGet(gpu, second)
        results.add(gpm(nvml, first, second, nvml.NVML_GPM_METRIC_SM_UTIL)[0][0])
    assert NO_DATA in results
