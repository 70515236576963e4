"""What monitors tell of their devices decides where offline work goes."""

from __future__ import annotations

import time

import pytest

from jobs_over_bus import Outcomes, status, submit, until, until_state
from muxflow.bus import Bus, NoResponders, QueryError
from muxflow.contracts import (
    ALL_TENANTS,
    DeviceCondition,
    DevicesQuery,
    DevicesReply,
    DeviceSummary,
    JobReply,
    JobState,
    NodesQuery,
)
from muxflow.contracts.catalogue import QUERY_DEVICES, QUERY_NODES
from scripted_node import NODE, ScriptedNode
from world import World

HEALTHY, UNHEALTHY = DeviceCondition.HEALTHY, DeviceCondition.UNHEALTHY
SECOND_NS = 10**9


async def waits(bus: Bus, job: str, *, because: str) -> None:
    async def ask() -> JobReply | None:
        try:
            return await status(bus, job)
        except (QueryError, NoResponders):
            return None

    reply = await until(ask, lambda reply: reply is not None and because in (reply.waiting or ""))
    assert reply.record.state is JobState.PENDING


async def devices(operator: Bus) -> dict[str, DeviceSummary]:
    """Ask once somebody leads and knows the node."""

    async def ask() -> tuple[DeviceSummary, ...]:
        try:
            reply: DevicesReply = await operator.request(QUERY_DEVICES, DevicesQuery(), timeout_s=5, tenant=ALL_TENANTS)
        except NoResponders:
            return ()
        return reply.devices

    return {each.gpu.uuid: each for each in await until(ask, bool)}


async def test_a_watched_gpu_takes_work_only_once_its_monitor_calls_it_healthy(
    user: Bus, watched: ScriptedNode, outcomes: Outcomes
) -> None:
    one, other = watched.gpus
    await submit(user, "x")
    await waits(user, "x", because="2 GPUs fit; 2 are not told of by a monitor yet; it is next in the queue")
    await watched.becomes(one, UNHEALTHY, "online activity 62% is above 60%")
    await watched.becomes(other, DeviceCondition.DISABLED, "disabled by an operator: new fans")
    await waits(
        user,
        "x",
        because="1 is unhealthy: online activity 62% is above 60%, 1 is disabled by an operator: new fans",
    )
    await watched.becomes(one, HEALTHY)
    gpu, slot = await watched.slot("x")
    assert gpu == one
    await watched.exited(gpu, slot)
    await outcomes.of("x", "finished")


async def test_a_job_evicted_from_a_device_goes_elsewhere_even_when_its_end_is_told_before_the_devices_state(
    user: Bus, watched: ScriptedNode, outcomes: Outcomes
) -> None:
    for gpu in watched.gpus:
        await watched.becomes(gpu, HEALTHY, since_ns=time.time_ns() - 100 * SECOND_NS)
    await submit(user, "x")
    first, slot = await watched.slot("x")
    (other,) = set(watched.gpus) - {first}
    await watched.evicts(first, slot)
    second, slot = await watched.slot("x", attempt=2)
    assert second == other
    await submit(user, "y")
    await waits(user, "y", because="1 is not known to be healthy again: a job was evicted from it")
    await watched.becomes(first, DeviceCondition.OVERLIMIT, "memory is exhausted")
    await waits(user, "y", because="1 is busy, 1 is over its limit: memory is exhausted")
    await watched.becomes(first, HEALTHY)
    third, _ = await watched.slot("y")
    assert third == first
    assert (await status(user, "x")).record.evictions == 1


async def test_of_two_healthy_gpus_the_calm_one_is_taken(user: Bus, operator: Bus, watched: ScriptedNode) -> None:
    busy, calm = watched.gpus
    await watched.serves(busy, "chat", 85.0)
    await watched.serves(calm, "search", 5.0)
    await watched.becomes(busy, HEALTHY)
    await watched.becomes(calm, DeviceCondition.UNHEALTHY)
    await until(lambda: devices(operator), lambda found: found[calm].state is UNHEALTHY)
    await watched.becomes(calm, HEALTHY)
    await until(lambda: devices(operator), lambda found: {each.state for each in found.values()} == {HEALTHY})
    await submit(user, "x")
    gpu, _ = await watched.slot("x")
    assert gpu == calm


async def test_operators_see_of_every_device_its_state_and_who_is_there(
    user: Bus, operator: Bus, watched: ScriptedNode
) -> None:
    one, other = watched.gpus
    await watched.serves(one, "chat", 40.0)
    await watched.becomes(one, HEALTHY, "calm for 5 s")
    await watched.becomes(other, UNHEALTHY, "online activity 62% is above 60%")
    await submit(user, "x")
    gpu, slot = await watched.slot("x")
    await watched.started(gpu, slot)
    await until_state(user, "x", JobState.RUNNING)
    found = await devices(operator)
    assert [found[one].state, found[other].state] == [HEALTHY, UNHEALTHY]
    assert (found[one].node, found[one].alive, found[one].watched) == (NODE, True, True)
    assert (found[one].workload, found[one].activity_peak_pct) == ("chat", 40.0)
    assert (found[one].job, found[one].attempt, found[one].job_state) == ("x", 1, JobState.RUNNING)
    assert (slot.sm_share_pct, found[one].sm_share_pct, found[one].next_sm_share_pct) == (50, 50, 50)
    assert (found[other].sm_share_pct, found[other].next_sm_share_pct) == (None, 30)
    assert (found[one].closed, found[one].cause, found[one].budget_permille) == (None, "calm for 5 s", 800)
    assert found[other].closed == "unhealthy: online activity 62% is above 60%"
    assert found[other].job is None
    nodes = await operator.request(QUERY_NODES, NodesQuery(), timeout_s=5, tenant=ALL_TENANTS)
    assert [each.budget_permille for each in nodes.nodes[0].gpus] == [800, 800]


async def test_sms_are_left_free_for_activity_that_the_beacon_does_not_cover(
    user: Bus, operator: Bus, watched: ScriptedNode
) -> None:
    one, other = watched.gpus
    await watched.serves(one, "chat", 40.0, uncovered_peak_pct=0.0)
    await watched.serves(other, "chat", 40.0, uncovered_peak_pct=20.0)
    await watched.becomes(one, HEALTHY, "calm for 5 s")
    await watched.becomes(other, UNHEALTHY, "online activity 62% is above 60%")
    await submit(user, "x")
    _, slot = await watched.slot("x")
    found = await devices(operator)
    assert (slot.sm_share_pct, found[other].next_sm_share_pct) == (90, 70)


async def test_gpus_that_are_only_declared_have_no_state_and_take_work(
    user: Bus, operator: Bus, node: ScriptedNode
) -> None:
    found = await devices(operator)
    assert {(each.watched, each.state, each.closed) for each in found.values()} == {(False, None, None)}
    await submit(user, "x")
    _, slot = await node.slot("x")
    assert slot.sm_share_pct is None


async def test_a_scheduler_that_takes_over_knows_the_devices_at_once(
    world: World, user: Bus, watched: ScriptedNode
) -> None:
    one, other = watched.gpus
    await watched.becomes(one, HEALTHY)
    await watched.becomes(one, UNHEALTHY, "online activity 62% is above 60%")
    await watched.becomes(other, HEALTHY)
    world.services["scheduler"].kill()
    await submit(user, "x")
    world.services["scheduler"].start()
    gpu, _ = await watched.slot("x")
    assert gpu == other


async def test_users_may_not_look_at_devices(user: Bus, watched: ScriptedNode) -> None:
    with pytest.raises(Exception, match=r"(?i)permission|forbidden|may not"):
        await user.request(QUERY_DEVICES, DevicesQuery(), timeout_s=5, tenant="default")
