"""Evictor and executor as processes, on a node with a simulated GPU: whatever dies, what was decided happens once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from executing_node import alive, python, slot_of, until
from muxflow.contracts import DeviceCondition, NodeState, RunEvicted, RunExited, RunStarted, StopCause
from muxflow.contracts.catalogue import NODES_STATE
from muxflow_device.pages import JobControl
from protected_node import NODE, ProtectedNode, protected_node

HARD = "memory: 12 MiB free, less than the reserve of 256 MiB"
SLOW_TO_END = """
import os, signal, sys, time
def end(*_):
    open("asked", "w").close()
    while not os.path.exists("may-end"): time.sleep(0.01)
    sys.exit(5)
os.chdir(sys.argv[1])
signal.signal(signal.SIGTERM, end)
open("ready", "w").close()
while True: signal.pause()
"""


FAULTS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
from cuda_calls import *
context()
launch(function("fault"), 0, nanoseconds(MS))
synchronize(0)
"""


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ProtectedNode]:
    async with protected_node(tmp_path) as node:
        node.monitor.say(DeviceCondition.HEALTHY)
        yield node


async def test_node_tells_that_its_gpus_are_watched(node: ProtectedNode) -> None:
    await node.session()
    async with asyncio.timeout(10):
        while (told := await node.bus.last(NODES_STATE, node=NODE)) is None:
            await asyncio.sleep(0.02)
    state: NodeState = told.event
    assert state.watched
    assert [(gpu.uuid, gpu.kind) for gpu in state.gpus] == [(node.gpu, "T4")]


async def test_job_is_evicted_and_told_of_by_both(node: ProtectedNode) -> None:
    slot = slot_of("sleep", "1000")
    await node.decide(slot)
    pid = (await node.fact(RunStarted)).pid
    control = JobControl.read(node.run.job(slot.key).control_page)
    assert control.limits.gpu == node.gpu
    node.monitor.say(DeviceCondition.OVERLIMIT, HARD, hard=True)
    begun, over = await node.alert(over=False), await node.alert(over=True)
    assert HARD in (await node.fact(RunEvicted)).reason
    exited = await node.fact(RunExited)
    assert exited.exit.stopped_by is StopCause.EVICTION
    assert begun.decided_ns == over.decided_ns
    assert not alive(pid)


@pytest.mark.parametrize("killed", [("evictor",), ("executor",), ("evictor", "executor")])
async def test_eviction_goes_on_whoever_is_killed_in_the_middle_of_it(
    node: ProtectedNode, tmp_path: Path, killed: tuple[str, ...]
) -> None:
    await node.decide(slot_of(*python(SLOW_TO_END), str(tmp_path), stop_grace_s=30.0))
    await until((tmp_path / "ready").exists)
    node.monitor.say(DeviceCondition.DISABLED, "by an operator")
    await until((tmp_path / "asked").exists)
    await node.kill(*killed)
    for name in killed:
        node.service(name).start()
    (tmp_path / "may-end").touch()
    await node.alert(over=True)
    exited = await node.fact(RunExited)
    assert (exited.exit.code, exited.exit.stopped_by) == (5, StopCause.EVICTION)
    assert [alert.id.rpartition(".")[2] for alert in node.alerts()] == ["begun", "over"]


async def test_executor_started_while_the_bus_is_away_takes_over_and_obeys_the_evictor(node: ProtectedNode) -> None:
    await node.decide(slot_of(*python("import time; time.sleep(1000)")))
    pid = (await node.fact(RunStarted)).pid
    await node.kill("executor")
    await node.world.servers[0].kill()
    node.service("executor").start()
    node.monitor.say(DeviceCondition.OVERLIMIT, HARD, hard=True)
    await until(lambda: not alive(pid), 10)
    await node.world.servers[0].start()
    assert (await node.fact(RunExited)).exit.stopped_by is StopCause.EVICTION
    over = await node.alert(over=True)
    assert over.total_ms is not None
    assert over.total_ms < 10_000


async def test_nothing_starts_before_the_lease_is_held_though_the_executor_works(node: ProtectedNode) -> None:
    await node.session()
    await node.kill("executor")
    await node.decide(slot_of("true"))
    await node.world.servers[0].kill()
    node.service("executor").start()
    await until(lambda: node.service("executor").log.read_text().count('"started"') == 2)
    assert list((node.world.state_dir("executor") / "attempts").iterdir()) == []
    await node.world.servers[0].start()
    exited = asyncio.create_task(node.fact(RunExited))
    while not exited.done():
        await node.decide(slot_of("true"))  # on a slow host the lease has lapsed meanwhile, and the session with it
        await asyncio.wait((exited,), timeout=3)
    assert exited.result().exit.succeeded


async def test_exit_of_a_program_that_lost_its_context_names_the_call_and_the_error(node: ProtectedNode) -> None:
    slot = slot_of(*python(FAULTS))
    await node.decide(msgspec.structs.replace(slot, memory_quota_bytes=1 << 30))
    status = (await node.fact(RunExited)).exit
    assert status.describe() == "exit code 1, after cuStreamSynchronize gave CUDA_ERROR_ILLEGAL_ADDRESS (700)"
