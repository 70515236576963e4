"""Publishes that travel together, and compare-and-swap whose ack was lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from muxflow.bus import Bus, KeyExists, WrongLastSequence
from muxflow.bus.batches import SMALLEST
from muxflow.bus.credentials import Principal
from muxflow.contracts import GpuRequest, JobRecord, JobSpec, Role
from muxflow.contracts.catalogue import BUCKET_JOBS
from proxy import Proxy
from world import World

COUNT = 400


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path, nodes={}, env={})
    await world.start_servers()
    yield world
    await world.stop()


@pytest.fixture
async def bus(world: World) -> AsyncIterator[Bus]:
    async with await world.connect(Principal(role=Role.SCHEDULER)) as bus:
        yield bus


def record(job: str, *, attempt: int = 0) -> JobRecord:
    spec = JobSpec(command=("true",), gpu=GpuRequest(memory_bytes=1))
    return JobRecord(tenant="t", job=job, spec=spec, submission_id="s", submitted_ns=1, attempt=attempt)


async def test_each_of_many_messages_is_told_its_own_place(bus: Bus) -> None:
    bucket = bus.kv(BUCKET_JOBS)
    revisions = await asyncio.gather(*(bucket.create(f"t.{n}", record(str(n))) for n in range(COUNT)))
    stored = {entry.key: entry.revision for entry in await bucket.entries()}
    assert stored == {f"t.{n}": revision for n, revision in enumerate(revisions)}
    again = await asyncio.gather(
        *(bucket.update(f"t.{n}", record(str(n), attempt=1), last=revisions[n]) for n in range(COUNT))
    )
    stored = {entry.key: entry.revision for entry in await bucket.entries()}
    assert stored == {f"t.{n}": revision for n, revision in enumerate(again)}


async def test_many_messages_cost_far_fewer_round_trips(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    ask = bus.requests.ask

    async def counting(*args: object, **kwargs: object) -> object:
        nonlocal asked
        asked += 1
        return await ask(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(bus.requests, "ask", counting)
    bucket = bus.kv(BUCKET_JOBS)
    await asyncio.gather(*(bucket.create(f"t.{n}", record(str(n))) for n in range(COUNT)))
    assert asked < COUNT / 4


async def test_a_conflict_fails_the_one_message_and_not_its_companions(bus: Bus) -> None:
    bucket = bus.kv(BUCKET_JOBS)
    await bucket.create("t.7", record("7"))
    results = await asyncio.gather(
        *(bucket.create(f"t.{n}", record(str(n))) for n in range(COUNT)), return_exceptions=True
    )
    assert [n for n, result in enumerate(results) if isinstance(result, BaseException)] == [7]
    assert isinstance(results[7], KeyExists)
    assert len(await bucket.entries()) == COUNT


async def test_changes_of_one_key_keep_their_order_beside_others(bus: Bus) -> None:
    bucket = bus.kv(BUCKET_JOBS)

    async def life(job: str) -> None:
        revision = await bucket.create(f"t.{job}", record(job))
        for attempt in range(1, 6):
            revision = await bucket.update(f"t.{job}", record(job, attempt=attempt), last=revision)

    await asyncio.gather(*(life(str(n)) for n in range(2 * SMALLEST)))
    assert {entry.value.attempt for entry in await bucket.entries()} == {5}


async def test_a_caller_that_gives_up_while_it_waits_holds_up_nobody(bus: Bus) -> None:
    bucket = bus.kv(BUCKET_JOBS)
    tasks = [asyncio.create_task(bucket.create(f"t.{n}", record(str(n)))) for n in range(COUNT)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kept = [result for result in results if isinstance(result, int)]
    assert len(kept) == COUNT - len(tasks[::3])
    await bucket.create("t.last", record("last"))


async def test_a_compare_and_swap_whose_ack_was_lost_is_recognised_as_ours(world: World) -> None:
    """The server answers the repetition with a conflict: our own message is the newest."""
    proxy = Proxy("127.0.0.1", world.servers[0].port)
    await proxy.start()
    settings = world.settings(Principal(role=Role.SCHEDULER), [proxy.url])
    async with await Bus.connect(settings, source="test") as bus:
        bucket = bus.kv(BUCKET_JOBS)
        first = await bucket.create("t.x", record("x"))
        proxy.swallow_answers()
        writing = asyncio.create_task(bucket.update("t.x", record("x", attempt=1), last=first))
        await _until_revision(world, after=first)
        proxy.drop_connections()
        revision = await asyncio.wait_for(writing, 20)
        entry = await bucket.get("t.x")
        assert entry is not None
        assert (entry.revision, entry.value.attempt) == (revision, 1)
        with pytest.raises(WrongLastSequence):
            await bucket.update("t.x", record("x", attempt=2), last=first)
    await proxy.stop()


async def _until_revision(world: World, *, after: int) -> None:
    async with await world.connect(Principal(role=Role.SCHEDULER)) as bus:
        bucket = bus.kv(BUCKET_JOBS)
        async with asyncio.timeout(10):
            while (entry := await bucket.get("t.x")) is None or entry.revision == after:
                await asyncio.sleep(0.01)
