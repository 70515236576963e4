"""Online activity beside a real offline job, held under xCUDA, both sides clients of one MPS."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cuda_program import CudaProgram
from muxflow.contracts import Attempt, DeviceCondition
from muxflow_decisions.device import Gate, GateState, JobPhase
from muxflow_device import beacon, native
from muxflow_device.mps import MpsControl
from muxflow_device.pages import DeviceReport, JobControlWriter, JobLimits, JobOrder, JobPage
from muxflow_simgpu import SimulatedMachine
from watched_node import WatchedNode, until
from workloads import WORKLOADS, OnlineService

MS_NS = 1_000_000
MIB = 2**20
SATURATING = "4096"
"""Thread blocks that fill either GPU."""
BOTH = pytest.mark.parametrize("index", [0, 1], ids=["T4", "H200"])


@pytest.fixture
async def node(machine: SimulatedMachine, tmp_path: Path) -> AsyncIterator[WatchedNode]:
    """A monitor without a bus, and MPS on both GPUs."""
    node = WatchedNode(tmp_path, machine, None, online={"chat": {"gpu": 0, "match": "cuda_program"}})
    node.start()
    await until(lambda: all(node.look(index).gate.state is GateState.OPEN for index in (0, 1)), "open gates")
    environment = {**os.environ, **machine.environment()}
    daemons = [MpsControl(node.run.device(uuid), uuid=uuid, environment=environment) for uuid in node.uuids]
    for daemon in daemons:
        await daemon.start()
    yield node
    for daemon in daemons:
        await daemon.quit()
    node.close()


def client_env(node: WatchedNode, index: int) -> dict[str, str]:
    uuid = node.uuids[index]
    return {
        **node.machine.environment(),
        "CUDA_VISIBLE_DEVICES": uuid,
        "CUDA_MPS_PIPE_DIRECTORY": str(node.run.device(uuid).mps_pipe),
    }


class OfflineJob:
    """A job that launches one kernel after the other, as the executor would start it."""

    def __init__(self, node: WatchedNode, index: int, *, blocks: str = SATURATING) -> None:
        uuid = node.uuids[index]
        directory = node.run.job(Attempt(tenant="default", job=f"job-{index}", attempt=1))
        JobPage.create(directory, gpu=uuid)
        always = JobOrder(gate=Gate(state=GateState.OPEN, budget_permille=1000, window_us=65_535), phase=JobPhase.RUN)
        self._control = JobControlWriter(directory, JobLimits(gpu=uuid, quota_bytes=None), always)
        self._process = subprocess.Popen(
            [sys.executable, str(WORKLOADS / "offline_job.py"), "--batches", "1000000", "--blocks", blocks],
            env={
                **os.environ,
                **client_env(node, index),
                "LD_PRELOAD": str(native.path("libxcuda.so")),
                "XCUDA_DEVICE_DIR": str(node.run.device(uuid).path),
                "XCUDA_JOB_DIR": str(directory.path),
                "MUXFLOW_RUN_ID": "run",
            },
            stdout=subprocess.DEVNULL,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._control.close()


@pytest.fixture
def jobs() -> Iterator[list[OfflineJob]]:
    started: list[OfflineJob] = []
    yield started
    for job in started:
        job.close()


def report(node: WatchedNode, index: int) -> DeviceReport:
    found = node.look(index).report
    assert found is not None
    return found


async def busy(node: WatchedNode, index: int, *, at_least: int) -> None:
    await until(lambda: (report(node, index).offline_busy_permille or 0) >= at_least, "offline work")


@BOTH
async def test_a_saturating_job_beside_an_idle_service_leaves_the_device_healthy(
    node: WatchedNode, jobs: list[OfflineJob], index: int
) -> None:
    with CudaProgram(client_env(node, index)) as service:
        service.do("context")
        jobs.append(OfflineJob(node, index))
        await busy(node, index, at_least=700)
        looks: list[DeviceReport] = []

        def look() -> bool:
            newest = report(node, index)
            if not looks or looks[-1].time_boottime_ns != newest.time_boottime_ns:
                looks.append(newest)
            return len(looks) == 30

        await until(look, "thirty looks")
    assert {each.condition for each in looks} == {DeviceCondition.HEALTHY}
    idle = sum((each.online_activity_permille or 0) < 100 for each in looks)
    assert idle >= 28  # a look that a busy machine has torn apart may see something
    assert (looks[-1].offline_memory_bytes or 0) > 256 * MIB  # what it allocates, and its context


@BOTH
async def test_a_service_beside_a_saturating_job_shows_and_takes_the_budget_back(
    node: WatchedNode, jobs: list[OfflineJob], index: int
) -> None:
    with CudaProgram(client_env(node, index)) as service:
        service.do("context")
        jobs.append(OfflineJob(node, index))
        await busy(node, index, at_least=700)
        before = node.look(index).gate.budget_permille
        service.do("launch", 60_000 * MS_NS, 80, 0)
        await until(lambda: (report(node, index).online_activity_permille or 0) > 300, "online activity")
        await until(lambda: node.look(index).gate.budget_permille < before // 2, "a small budget")


def beacon_env(node: WatchedNode, index: int) -> dict[str, str]:
    return {**client_env(node, index), **beacon.environment(node.run.path, node.uuids[index])}


@BOTH
async def test_a_service_with_the_beacon_leaves_the_budget_and_one_without_takes_it_back(
    node: WatchedNode, jobs: list[OfflineJob], index: int
) -> None:
    with CudaProgram(beacon_env(node, index)) as service:
        service.do("context")
        service.do("launch", 20 * MS_NS, 80, 0)
        await until(lambda: node.look(index).gate.budget_permille == 1000, "the largest budget")
        assert node.look(index).gate.window_us == 500
        jobs.append(OfflineJob(node, index))
        await busy(node, index, at_least=500)
        service.do("launch", 60_000 * MS_NS, 80, 0)
        with CudaProgram(client_env(node, index)) as other:
            other.do("context")
            await until(lambda: node.look(index).gate.budget_permille < 800, "a small budget")


@BOTH
async def test_activity_beside_the_beacon_is_what_the_online_side_uses(
    node: WatchedNode, jobs: list[OfflineJob], index: int
) -> None:
    """Requests of 3 ms, some 30% of the time; offline work has the rest."""
    log, env = node.run.path / "online.jsonl", beacon_env(node, index)
    service = OnlineService(log, env, rates_per_s=(100.0,), seconds=20.0, kernels=1, kernel_us=3000, blocks=4096)
    try:
        service.ready()
        jobs.append(OfflineJob(node, index))
        await busy(node, index, at_least=400)
        seen: list[int] = []

        def look() -> bool:
            if time.monotonic_ns() - service.begin_ns > 2500 * MS_NS:  # all of what NVML tells is later than its begin
                seen.append(report(node, index).online_activity_permille or 0)
            return service.requests() != [] and len(seen) >= 100

        await until(look, "looks while it serves")
        assert report(node, index).condition is DeviceCondition.HEALTHY
        assert node.look(index).gate.budget_permille == 1000
        assert 150 <= sorted(seen)[len(seen) // 2] <= 500
    finally:
        service.kill()


async def test_online_work_on_sms_that_offline_work_leaves_free_is_measured_in_sms(
    node: WatchedNode, jobs: list[OfflineJob]
) -> None:
    with CudaProgram(client_env(node, 1)) as service:
        service.do("context")
        jobs.append(OfflineJob(node, 1, blocks="160"))
        await busy(node, 1, at_least=700)
        await until(lambda: (report(node, 1).sm_activity_permille or 0) > 0, "SM activity of offline work alone")
        service.do("launch", 60_000 * MS_NS, 20, 0)
        await until(lambda: 150 <= (report(node, 1).online_activity_permille or 0) <= 400, "20 % of the SMs, or so")
