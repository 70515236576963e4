"""A record, decision or lease that nobody can read: the scheduler names it and goes on.

A node damages it here, by having the server's ack of a fact sent to where the record is: see infra/nats/README.md.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from muxflow.bus import Bus, KeyExists, QueryError
from muxflow.bus.credentials import Principal
from muxflow.bus.requests import ApiError
from muxflow.contracts import GpuRequest, JobCancel, JobQuery, JobSpec, JobSubmit, Role, encode_token
from muxflow.contracts.catalogue import (
    DECISIONS,
    JOBS_ACCEPTED,
    JOBS_CANCEL,
    JOBS_FINISHED,
    JOBS_REJECTED,
    JOBS_SUBMIT,
    QUERY_JOB,
    RUNS_STARTED,
)
from scripted_node import NODE, ScriptedNode
from world import World

PURGE = "nats stream purge KV_jobs --subject='$KV.jobs.default.victim'"


class Heard:
    """Outcomes as the user hears them live."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    def take(self, message: Any) -> None:
        self._events.put_nowait(message)

    async def next_of(self, job: str, what: str) -> Any:
        async with asyncio.timeout(20):
            while True:
                message = await self._events.get()
                if (message.names["job"], message.subject.name) == (job, f"jobs.{what}"):
                    return message.event


@pytest.fixture
async def heard(user: Bus) -> Heard:
    heard = Heard()
    for subject in (JOBS_ACCEPTED, JOBS_REJECTED, JOBS_FINISHED):
        await user.subscribe(subject, heard.take, bindings={"tenant": "default"})
    return heard


@pytest.fixture
async def provisioner(world: World) -> AsyncIterator[Bus]:
    async with await world.connect(Principal(role=Role.PROVISIONER)) as bus:
        yield bus


async def submit(user: Bus, job: str) -> None:
    spec = JobSpec(command=("true",), gpu=GpuRequest(memory_bytes=2**30))
    await user.publish(JOBS_SUBMIT, JobSubmit(spec=spec), tenant="default", job=job)


async def run(user: Bus, node: ScriptedNode, heard: Heard, job: str) -> None:
    await submit(user, job)
    gpu, slot = await node.slot(job)
    await node.exited(gpu, slot)
    await heard.next_of(job, "finished")


async def damage(node: ScriptedNode, provisioner: Bus, address: str) -> None:
    """Have an ack stored there as the newest message, however often others write it."""
    async with asyncio.timeout(10):
        while b'"stream":"RUNS"' not in await newest(provisioner, address):
            fact = RUNS_STARTED.of(node=NODE, tenant="t", job="j")
            await node.bus.connection.send(fact, b"{}", reply=address)


async def newest(provisioner: Bus, address: str) -> bytes:
    stream = DECISIONS.stream if address.startswith("muxflow.decisions.") else "KV_" + address.split(".")[1]
    try:
        found = await provisioner.requests.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": address}, timeout_s=5)
    except ApiError:
        return b""
    return base64.b64decode(found["message"].get("data", ""))


def complaints(world: World) -> list[dict[str, str]]:
    lines = (world.root / "scheduler.log").read_text().splitlines()
    return [json.loads(line) for line in lines if "damaged record" in line]


async def until(good: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not good():
            await asyncio.sleep(0.05)


async def test_a_record_damaged_while_the_scheduler_leads_is_named_and_stops_nothing(
    world: World, user: Bus, node: ScriptedNode, provisioner: Bus, heard: Heard
) -> None:
    await submit(user, "victim")
    gpu, slot = await node.slot("victim")
    await damage(node, provisioner, "$KV.jobs.default.victim")
    await node.exited(gpu, slot)  # its record cannot be changed any more: the next term finds it damaged
    await until(lambda: len(complaints(world)) == 1)
    assert complaints(world)[0]["key"] == "default.victim"
    assert complaints(world)[0]["level"] == "error"
    await run(user, node, heard, "other")
    assert world.services["scheduler"].running


async def test_a_submission_and_a_cancellation_of_a_damaged_job_are_answered_by_what_to_do(
    world: World, user: Bus, node: ScriptedNode, provisioner: Bus, heard: Heard
) -> None:
    world.services["scheduler"].kill()
    await damage(node, provisioner, "$KV.jobs.default.victim")
    world.services["scheduler"].start()
    await submit(user, "victim")
    assert PURGE in (await heard.next_of("victim", "rejected")).reason
    await user.publish(JOBS_CANCEL, JobCancel(), tenant="default", job="victim")
    assert PURGE in (await heard.next_of("victim", "rejected")).reason
    with pytest.raises(QueryError, match="is damaged"):
        await user.request(QUERY_JOB, JobQuery(job="victim"), timeout_s=5, tenant="default")
    # The operator does as told; the running scheduler takes the name again.
    await provisioner.requests.api("STREAM.PURGE.KV_jobs", {"filter": "$KV.jobs.default.victim"}, timeout_s=5)
    await run(user, node, heard, "victim")
    assert len(complaints(world)) == 1


async def test_a_key_that_was_damaged_before_its_job_came_is_found_when_it_comes(
    world: World, user: Bus, node: ScriptedNode, provisioner: Bus, heard: Heard
) -> None:
    await run(user, node, heard, "first")
    await damage(node, provisioner, "$KV.jobs.default.victim")
    await submit(user, "victim")
    assert PURGE in (await heard.next_of("victim", "rejected")).reason
    await run(user, node, heard, "other")


async def test_a_damaged_decision_is_replaced_by_a_good_one(
    world: World, user: Bus, node: ScriptedNode, provisioner: Bus, heard: Heard
) -> None:
    await run(user, node, heard, "first")
    for gpu in node.gpus:
        await damage(node, provisioner, DECISIONS.of(node=NODE, gpu=gpu))
    await run(user, node, heard, "second")
    assert world.services["scheduler"].running


async def test_a_damaged_lead_is_free_when_its_time_is_over(
    world: World, user: Bus, node: ScriptedNode, provisioner: Bus, heard: Heard
) -> None:
    await run(user, node, heard, "first")
    await damage(node, provisioner, "$KV.leader.scheduler")
    await run(user, node, heard, "second")
    assert world.services["scheduler"].running


async def test_a_node_whose_lease_was_damaged_comes_back_when_its_time_is_over(
    world: World, user: Bus, node: ScriptedNode, provisioner: Bus, heard: Heard
) -> None:
    await run(user, node, heard, "first")
    await node.fall_silent()
    await damage(node, provisioner, "$KV.node_leases." + encode_token(NODE))
    async with asyncio.timeout(20):
        while True:
            try:
                await node.come_back()
                break
            except KeyExists:
                await asyncio.sleep(0.1)
    await run(user, node, heard, "second")
    assert world.services["scheduler"].running
