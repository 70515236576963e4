"""What users, nodes and former leaders may do to a scheduler, and it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import msgspec
import pytest

from jobs_over_bus import Outcomes, spec, status, submit, until_state
from muxflow.bus import Bus
from muxflow.bus.credentials import Principal
from muxflow.contracts import (
    DeadLetter,
    ExitStatus,
    JobCancel,
    JobSpec,
    JobState,
    JobSubmit,
    NodeState,
    Role,
    RunExited,
    encode,
)
from muxflow.contracts.catalogue import (
    BUCKET_JOBS,
    DEAD,
    JOBS_CANCEL,
    JOBS_SUBMIT,
    NODES_STATE,
    RUNS_EXITED,
)
from scripted_node import NODE, ScriptedNode
from world import World


async def test_an_endless_id_is_refused_and_an_endless_error_is_cut(
    user: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    """Either made an outcome too large to be published, and no later scheduler could take over."""
    event = JobSubmit(id="x" * 900_000, source="s", time_ns=1, spec=spec())
    await user.connection.send(JOBS_SUBMIT.of(tenant="default", job="long-id"), encode(event))
    assert (await outcomes.of("long-id", "rejected")).field == "id"
    await submit(user, "long-error", retries=0)
    gpu, _ = await node.slot("long-error")
    fact = RunExited(
        node=NODE,
        gpu=gpu,
        tenant="default",
        job="long-error",
        attempt=1,
        exit=ExitStatus(error="e" * 500_000),
        ended_ns=1,
    )
    await node.bus.publish(RUNS_EXITED, fact, node=NODE, tenant="default", job="long-error")
    failed = await outcomes.of("long-error", "failed")
    assert len(failed.reason) <= 1000
    assert len(encode(failed)) < 4096


async def test_a_back_off_outlives_its_leader(world: World, user: Bus, node: ScriptedNode, outcomes: Outcomes) -> None:
    await submit(user, "x", retries=1)
    gpu, slot = await node.slot("x")
    await node.exited(gpu, slot, code=1)
    await until_state(user, "x", JobState.PENDING)
    scheduler = world.services["scheduler"]
    await asyncio.to_thread(scheduler.kill)
    scheduler.start()
    gpu, slot = await node.slot("x", attempt=2)
    await node.exited(gpu, slot)
    await outcomes.of("x", "finished")


async def test_a_back_off_that_ends_in_a_new_leaders_first_solve_is_seen(
    world: World, user: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    """The job takes part in that solve as one that may not go yet, and nothing else asks for another one."""
    await submit(user, "x", retries=1)
    gpu, slot = await node.slot("x")
    await node.exited(gpu, slot, code=1)
    await until_state(user, "x", JobState.PENDING)
    held = (await status(user, "x")).record
    scheduler = world.services["scheduler"]
    await asyncio.to_thread(scheduler.kill)
    scheduler.start()
    async with asyncio.timeout(10):
        while (solver := scheduler.child("muxflow_scheduler.solver")) is None:
            await asyncio.sleep(0.001)
    os.kill(solver, signal.SIGSTOP)
    await asyncio.sleep((held.not_before_ns - time.time_ns()) / 1e9)
    os.kill(solver, signal.SIGCONT)
    gpu, slot = await node.slot("x", attempt=2)
    await node.exited(gpu, slot)
    await outcomes.of("x", "finished")


async def test_what_a_former_leader_still_writes_is_taken_in(
    world: World, user: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    """A leader that was stopped for a while may write a record after its successor has read them all."""
    await submit(user, "seen")
    gpu, slot = await node.slot("seen")
    term = node.decisions[gpu].term
    async with await world.connect(Principal(role=Role.SCHEDULER)) as former:
        record = (await status(user, "seen")).record
        late = msgspec.structs.replace(record, job="late", spec=spec(name="late"), placement=None, attempt=0)
        late = msgspec.structs.replace(late, state=JobState.PENDING, last_placement=None, started_ns=0)
        bucket = former.kv(BUCKET_JOBS)
        await bucket.create(bucket.key(tenant="default", job="late"), late)
    late_gpu, late_slot = await node.slot("late")
    assert node.decisions[late_gpu].term > term
    await node.exited(late_gpu, late_slot)
    await outcomes.of("late", "finished")
    await node.exited(gpu, slot)
    await outcomes.of("seen", "finished")
    assert outcomes.count("seen") == {"jobs.accepted": 1, "jobs.finished": 1}


async def test_a_node_speaks_for_itself_only(
    world: World, user: Bus, operator: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    await submit(user, "x")
    gpu, slot = await node.slot("x")
    fact = RunExited(node=NODE, gpu=gpu, tenant="default", job="x", attempt=1, exit=ExitStatus(code=0), ended_ns=1)
    dead: asyncio.Queue[DeadLetter] = asyncio.Queue()
    await operator.read(DEAD, lambda message: dead.put_nowait(message.event), start="all")
    await operator.publish(RUNS_EXITED, fact, node="evil", tenant="default", job="x")
    letter = await asyncio.wait_for(dead.get(), 10)
    assert "node is 'node.a', and the subject says 'evil'" in letter.reason
    assert (await status(user, "x")).record.state is JobState.ASSIGNED
    stranger = NodeState(node="node.b", boot_id="b", gpus=())
    with pytest.raises(Exception, match=r"may not publish|no answer"):
        await node.bus.publish(NODES_STATE, stranger, node="node.b", deadline_s=1)
    await node.exited(gpu, slot)
    await outcomes.of("x", "finished")


async def test_a_message_id_taken_before_suppresses_no_outcome(
    user: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    submission = JobSubmit(id="s1", spec=JobSpec(command=("true",), gpu=spec().gpu))
    await user.publish(JOBS_SUBMIT, submission, tenant="default", job="x")
    gpu, slot = await node.slot("x")
    await user.publish(JOBS_CANCEL, JobCancel(id="default.x.s1.terminal"), tenant="default", job="other")
    await node.exited(gpu, slot)
    await outcomes.of("x", "finished")
