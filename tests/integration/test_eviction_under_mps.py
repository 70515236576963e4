"""Offline programs that are evicted from a simulated GPU on which an online service runs, both clients of one MPS."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from executing_node import CHECKPOINT, slot_of, until
from muxflow.contracts import DeviceCondition, RunCheckpointed, RunExited, RunStarted, Slot, StopCause
from muxflow_device.mps import MpsControl
from muxflow_device.pages import JobPage, PageError
from protected_node import ProtectedNode, protected_node
from workloads import WORKLOADS, OnlineService, lost

STUBBORN = f"""
import runpy, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.path.insert(0, {str(WORKLOADS)!r})
sys.argv[0] = {str(WORKLOADS / "offline_job.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LEAVES_A_CHILD = """
import subprocess, sys, time
from pathlib import Path
subprocess.Popen([sys.executable, *sys.argv[1:]], process_group=0)
while not Path("leave").exists(): time.sleep(0.01)
"""
ENDLESS = ("--batches", "1000000", "--blocks", "320", "--save-every", "0")
OFFLINE_JOB = str(WORKLOADS / "offline_job.py")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ProtectedNode]:
    """A node whose GPU is shared through MPS, and healthy."""
    async with protected_node(tmp_path) as node:
        mps = MpsControl(
            node.run.device(node.gpu), uuid=node.gpu, environment={**os.environ, **node.simulated.environment()}
        )
        await mps.start()
        node.monitor.say(DeviceCondition.HEALTHY)
        yield node
        await mps.quit()


@pytest.fixture
async def online(node: ProtectedNode, tmp_path: Path) -> AsyncIterator[OnlineService]:
    """A service under load, a client of the same MPS server as the jobs will be."""
    env = {
        **node.simulated.environment(),
        "CUDA_VISIBLE_DEVICES": node.gpu,
        "CUDA_MPS_PIPE_DIRECTORY": str(node.run.device(node.gpu).mps_pipe),
    }
    service = OnlineService(tmp_path / "online.jsonl", env, rates_per_s=[50], seconds=120)
    await asyncio.to_thread(service.ready)
    yield service
    service.kill()


def offline(job: str, *program: str, kernel_ms: int = 2) -> Slot:
    """An offline job that launches one kernel after the other, and hardly ever has none in flight."""
    command = (sys.executable, *program, *ENDLESS, "--kernel-us", str(kernel_ms * 1000))
    slot = slot_of(*command, job=job, checkpoint=CHECKPOINT, stop_grace_s=0.3)
    return msgspec.structs.replace(slot, memory_quota_bytes=4 << 30)


async def on_the_gpu(node: ProtectedNode, slot: Slot, *, launches: int = 10) -> None:
    """Have a job start, and wait until it has launched so many kernels."""

    def launched() -> int:
        try:
            with JobPage(node.run.job(slot.key)) as page:
                return page.read().launches
        except PageError:  # not there yet
            return 0

    await node.decide(slot)
    await until(lambda: launched() >= launches)


async def after(online: OnlineService, requests: int = 5) -> list[str]:
    """Let some more requests pass; gives what all of them so far have lost."""
    before = len(online.requests())
    await until(lambda: len(online.requests()) >= before + requests)
    return lost(online.requests())


@pytest.mark.timeout(180)  # ten of some two seconds, on a machine of its own
async def test_online_service_loses_nothing_while_its_neighbour_is_evicted_again_and_again(
    node: ProtectedNode, online: OnlineService
) -> None:
    for number in range(10):
        program = ("-c", STUBBORN) if number % 2 else (OFFLINE_JOB,)
        slot = offline(f"job-{number}", *program)
        await on_the_gpu(node, slot)
        node.monitor.say(DeviceCondition.OVERLIMIT, f"eviction {number}", hard=number % 4 > 1)
        await node.alert(slot.job, over=True)
        exited = await node.fact(RunExited, slot.job)
        assert exited.exit.signal == ("SIGKILL" if number % 2 else "SIGTERM")
        saved = any(isinstance(event, RunCheckpointed) and event.job == slot.job for event in node.events)
        assert saved is (number % 4 <= 1)
        node.monitor.say(DeviceCondition.HEALTHY)
        assert await after(online) == []


async def test_online_service_loses_nothing_when_evictor_and_executor_are_killed_in_the_middle(
    node: ProtectedNode, online: OnlineService
) -> None:
    slot = offline("job", "-c", STUBBORN)
    await on_the_gpu(node, slot)
    node.monitor.say(DeviceCondition.OVERLIMIT, "in the middle", hard=True)
    await node.alert(over=False)
    await node.kill("evictor", "executor")
    for name in ("executor", "evictor"):
        node.service(name).start()
    await node.alert(over=True)
    assert (await node.fact(RunExited)).exit.stopped_by is StopCause.EVICTION
    assert await after(online) == []


async def test_online_service_loses_nothing_by_what_a_job_leaves_behind(
    node: ProtectedNode, online: OnlineService, tmp_path: Path
) -> None:
    slot = offline("job", "-c", LEAVES_A_CHILD, "-c", STUBBORN)
    slot = msgspec.structs.replace(slot, launch=msgspec.structs.replace(slot.launch, workdir=str(tmp_path)))
    await on_the_gpu(node, slot)
    (tmp_path / "leave").touch()
    exited = await node.fact(RunExited)
    assert (exited.exit.code, exited.exit.stopped_by) == (0, None)
    assert await after(online) == []


async def test_kill_that_nobody_prepared_costs_the_online_service_its_answers(
    node: ProtectedNode, online: OnlineService
) -> None:
    """Else the tests above could not fail."""
    slot = offline("job", OFFLINE_JOB, kernel_ms=1000)
    await on_the_gpu(node, slot, launches=1)  # which lasts for a second
    os.kill((await node.fact(RunStarted)).pid, signal.SIGKILL)
    await node.fact(RunExited)
    assert await after(online) != []
