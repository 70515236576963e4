from __future__ import annotations

import signal

import pytest

from jobs_over_bus import Outcomes, status, submit, until, until_state
from muxflow.bus import Bus, QueryError
from muxflow.contracts import (
    ALL_TENANTS,
    EvictRequest,
    GpuRequest,
    JobCancel,
    JobReply,
    JobSpec,
    JobsQuery,
    JobState,
    JobSubmit,
    NodesQuery,
    StopCause,
)
from muxflow.contracts.catalogue import (
    JOBS_CANCEL,
    JOBS_SUBMIT,
    QUERY_JOBS,
    QUERY_NODES,
    REQUESTS_EVICT,
)
from scripted_node import NODE, ScriptedNode
from world import World


async def test_a_job_is_recorded_placed_run_and_finished(user: Bus, node: ScriptedNode, outcomes: Outcomes) -> None:
    await submit(user, "x")
    gpu, slot = await node.slot("x")
    assert slot.attempt == 1
    assert slot.memory_quota_bytes == 2**30
    assert slot.launch.command == ("true",)
    await outcomes.of("x", "accepted")
    await node.started(gpu, slot)
    record = await until_state(user, "x", JobState.RUNNING)
    assert record.placement is not None
    assert record.placement.node == NODE
    await node.exited(gpu, slot, times=3)
    finished = await outcomes.of("x", "finished")
    assert (finished.attempt, finished.node, finished.gpu) == (1, NODE, gpu)
    await node.withdrawn("x")
    assert outcomes.count("x") == {"jobs.accepted": 1, "jobs.finished": 1}


async def test_a_failed_attempt_is_tried_again_and_the_last_one_fails_the_job(
    user: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    await submit(user, "x", retries=1)
    for attempt in (1, 2):
        gpu, slot = await node.slot("x", attempt)
        await node.exited(gpu, slot, code=3)
    failed = await outcomes.of("x", "failed")
    assert failed.attempt == 2
    assert "exit code 3" in failed.reason
    assert failed.exit.code == 3


async def test_the_same_submission_twice_is_one_job_and_another_of_that_name_is_rejected(
    user: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    await submit(user, "x")
    await submit(user, "x")
    await submit(user, "x", priority=5)
    rejected = await outcomes.of("x", "rejected")
    assert rejected.field == "spec"
    assert "another job of this name" in rejected.reason
    gpu, slot = await node.slot("x")
    await node.exited(gpu, slot)
    await outcomes.of("x", "finished")
    assert slot.attempt == 1


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b'{"spec":{"command":["a"],"gpu":{"memory_bytes":-1}}}', "spec.gpu.memory_bytes"),
        (b'{"spec":{"command":[],"gpu":{"memory_bytes":1}}}', "spec.command"),
        (b'{"spec":{"command":["a"],"gpu":{"memory_bytes":1},"retrys":1}}', "spec.retrys"),
        (b'{"spec":{"command":["a"]}}', "spec.gpu"),
    ],
)
async def test_an_invalid_submission_is_rejected_with_its_field_and_stops_nothing(
    user: Bus, node: ScriptedNode, outcomes: Outcomes, payload: bytes, field: str
) -> None:
    await user.connection.send(JOBS_SUBMIT.of(tenant="default", job="bad"), payload)
    rejected = await outcomes.of("bad", "rejected")
    assert rejected.field == field
    await submit(user, "good")
    gpu, slot = await node.slot("good")
    await node.exited(gpu, slot)
    await outcomes.of("good", "finished")


async def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_when_it_has_ended(
    user: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    await submit(user, "runs")
    gpu, slot = await node.slot("runs")
    await node.started(gpu, slot)
    await user.publish(
        JOBS_SUBMIT,
        JobSubmit(spec=JobSpec(command=("true",), gpu=GpuRequest(memory_bytes=2**39))),
        tenant="default",
        job="too-big",
    )
    reply = await until(lambda: _status_or_none(user, "too-big"), lambda reply: reply is not None)
    assert reply.waiting is not None
    assert "needs 512 GiB, the largest GPU has 16 GiB" in reply.waiting
    for job in ("runs", "too-big", "unknown"):
        await user.publish(JOBS_CANCEL, JobCancel(), tenant="default", job=job)
    await outcomes.of("too-big", "cancelled")
    assert "there is no job" in (await outcomes.of("unknown", "rejected")).reason
    await node.withdrawn("runs")
    assert "jobs.cancelled" not in outcomes.count("runs")
    await node.exited(gpu, slot, code=None, stopped_by=StopCause.DECISION)
    await outcomes.of("runs", "cancelled")


async def _status_or_none(bus: Bus, job: str) -> JobReply | None:
    try:
        return await status(bus, job)
    except QueryError:
        return None


async def test_an_operators_eviction_puts_the_job_back_into_the_queue(
    user: Bus, operator: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    await submit(user, "x")
    gpu, slot = await node.slot("x")
    await operator.publish(REQUESTS_EVICT, EvictRequest(node=NODE, gpu=gpu, reason="maintenance"), node=NODE, gpu=gpu)
    await node.withdrawn("x")
    assert [attempt.attempt for attempt in node.decisions[gpu].withdrawn] == [1]
    await node.exited(gpu, slot, code=None, stopped_by=StopCause.DECISION)
    gpu, slot = await node.slot("x", attempt=2)
    await node.exited(gpu, slot)
    finished = await outcomes.of("x", "finished")
    assert finished.attempt == 2


async def test_a_silent_node_is_lost_and_its_job_starts_anew_only_in_a_new_session(
    user: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    await submit(user, "x")
    gpu, slot = await node.slot("x")
    await node.started(gpu, slot)
    await until_state(user, "x", JobState.RUNNING)
    await node.fall_silent()
    record = await until_state(user, "x", JobState.PENDING)
    assert "was lost" in record.reason
    assert record.failures == 0
    await node.come_back()
    gpu, slot = await node.slot("x", attempt=2)
    await node.exited(gpu, slot)
    await outcomes.of("x", "finished")
    assert outcomes.count("x") == {"jobs.accepted": 1, "jobs.finished": 1}


async def test_a_scheduler_killed_at_any_point_leaves_nothing_undone(
    world: World, user: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    scheduler = world.services["scheduler"]
    await submit(user, "a")
    gpu, slot = await node.slot("a")
    scheduler.kill()
    await submit(user, "b")
    await node.started(gpu, slot)
    await node.exited(gpu, slot)
    term = node.decisions[gpu].term
    scheduler.start()
    await outcomes.of("a", "finished")
    gpu, slot = await node.slot("b")
    assert node.decisions[gpu].term > term
    await node.exited(gpu, slot)
    await outcomes.of("b", "finished")
    assert outcomes.count("a") == outcomes.count("b") == {"jobs.accepted": 1, "jobs.finished": 1}


async def test_of_two_schedulers_one_leads_and_the_other_takes_over(
    world: World, user: Bus, node: ScriptedNode, outcomes: Outcomes
) -> None:
    world.add_scheduler("second")
    await submit(user, "a")
    gpu, slot = await node.slot("a")
    await node.exited(gpu, slot)
    await outcomes.of("a", "finished")
    world.services["scheduler"].kill(signal.SIGTERM)
    await submit(user, "b")
    gpu, slot = await node.slot("b")
    await node.exited(gpu, slot)
    await outcomes.of("b", "finished")


async def test_questions_are_answered_per_tenant(user: Bus, operator: Bus, node: ScriptedNode) -> None:
    await submit(user, "x")
    gpu, _ = await node.slot("x")
    jobs = await user.request(QUERY_JOBS, JobsQuery(), timeout_s=5, tenant="default")
    assert [summary.job for summary in jobs.jobs] == ["x"]
    jobs = await operator.request(QUERY_JOBS, JobsQuery(states=(JobState.FAILED,)), timeout_s=5, tenant=ALL_TENANTS)
    assert (jobs.jobs, jobs.total) == ((), 0)
    nodes = await operator.request(QUERY_NODES, NodesQuery(), timeout_s=5, tenant=ALL_TENANTS)
    assert nodes.nodes[0].alive
    assert {each.gpu.uuid: each.job for each in nodes.nodes[0].gpus}[gpu] == "x"
    with pytest.raises(QueryError, match="no job 'nothing'"):
        await status(user, "nothing")
