"""Traps of readers, watchers and live subscriptions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from muxflow.bus import Bus, Entry, FromSequence, FromTime, Message, RawMessage, Removal
from muxflow.bus.provision import provision
from muxflow.contracts import (
    GpuDecision,
    LeaderLease,
    NodeTelemetry,
)
from muxflow.contracts.catalogue import BUCKET_LEADER, DECISIONS, TELEMETRY
from muxflow.testing import TestServer, running_server


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    """One whose leader bucket keeps its keys for as long as a test may take."""
    async with running_server(ttl_s={"leader": 300}) as running:
        yield running


def decision(generation: int, gpu: str = "g") -> GpuDecision:
    return GpuDecision(node="n", gpu=gpu, term=1, generation=generation)


async def decide(bus: Bus, generation: int, gpu: str = "g") -> int:
    return (await bus.publish(DECISIONS, decision(generation, gpu), node="n", gpu=gpu)).sequence


async def until(condition: Callable[[], bool], *, within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


class Seen:
    """What a reader was given."""

    def __init__(self) -> None:
        self.generations: dict[str, list[int]] = {}

    def __call__(self, message: Message[GpuDecision]) -> None:
        self.generations.setdefault(message.names["gpu"], []).append(message.event.generation)

    def last(self, gpu: str = "g") -> int:
        return self.generations.get(gpu, [-1])[-1]


async def test_a_reader_of_the_last_messages_gets_the_newest_of_each_subject_and_then_every_new_one(bus: Bus) -> None:
    for generation in range(3):
        await decide(bus, generation, "a")
        await decide(bus, generation, "b")
    seen = Seen()
    reader = await bus.read(DECISIONS, seen, start="last", bindings={"node": "n"})
    await asyncio.wait_for(reader.caught_up(), 5)
    assert seen.generations == {"a": [2], "b": [2]}
    await decide(bus, 3, "a")
    await until(lambda: seen.generations == {"a": [2, 3], "b": [2]})


async def test_a_reader_of_nothing_is_caught_up(bus: Bus) -> None:
    told = asyncio.Event()
    reader = await bus.read(DECISIONS, lambda _: None, on_caught_up=told.set)
    await asyncio.wait_for(reader.caught_up(), 5)
    await asyncio.wait_for(told.wait(), 5)


async def test_a_reader_starts_where_it_is_told(bus: Bus) -> None:
    await bus.publish(TELEMETRY, NodeTelemetry(node="n", gpus=()), node="n")
    await asyncio.sleep(0.05)
    between = time.time_ns()
    sequence = (await bus.publish(TELEMETRY, NodeTelemetry(node="n", gpus=()), node="n")).sequence
    got: dict[str, list[int]] = {"all": [], "new": [], "sequence": [], "time": []}
    for name, start in (
        ("all", "all"),
        ("new", "new"),
        ("sequence", FromSequence(sequence)),
        ("time", FromTime(between)),
    ):
        reader = await bus.read(
            TELEMETRY,
            lambda message, into=got[name]: into.append(message.stream_sequence),  # type: ignore[misc]
            start=start,  # type: ignore[arg-type]  # a literal in a table
        )
        await asyncio.wait_for(reader.caught_up(), 5)
    await bus.publish(TELEMETRY, NodeTelemetry(node="n", gpus=()), node="n")
    await until(lambda: all(sequences[-1:] == [3] for sequences in got.values()))
    assert got == {"all": [1, 2, 3], "new": [3], "sequence": [2, 3], "time": [2, 3]}


async def test_a_reader_recovers_within_three_seconds_of_a_servers_restart_and_repeats_nothing(
    bus: Bus, server: TestServer
) -> None:
    seen = Seen()
    await decide(bus, 0)
    reader = await bus.read(DECISIONS, seen, start="last")
    await reader.caught_up()
    for generation in range(1, 4):
        await server.kill()
        await server.start()
        began = time.monotonic()
        await decide(bus, generation)
        await until(lambda generation=generation: seen.last() == generation)  # type: ignore[misc]
        assert time.monotonic() - began < 3
    assert seen.generations["g"] == [0, 1, 2, 3]


async def test_what_was_published_while_a_reader_was_away_is_read_afterwards(bus: Bus, server: TestServer) -> None:
    seen = Seen()
    reader = await bus.read(DECISIONS, seen, start="last")
    await reader.caught_up()
    consumers = (await bus.requests.api("CONSUMER.NAMES.DECISIONS", timeout_s=5))["consumers"]
    await bus.requests.api(f"CONSUMER.DELETE.DECISIONS.{consumers[0]}", timeout_s=5)  # nobody tells the reader
    began = time.monotonic()
    await decide(bus, 1)
    await until(lambda: seen.last() == 1)
    assert time.monotonic() - began < 4


async def test_a_reader_of_everything_misses_nothing_and_repeats_nothing_over_restarts(
    bus: Bus, server: TestServer
) -> None:
    got: list[int | None] = []
    await bus.read(DECISIONS, lambda message: got.append(message.stream_sequence), start="all")
    sequences: list[int] = []
    for round_ in range(4):
        sequences += [await decide(bus, number, f"g{round_}-{number}") for number in range(20)]
        if round_ < 3:
            await server.kill()
            await server.start()
    await until(lambda: len(got) >= len(sequences))
    assert got == sequences


async def test_a_memory_stream_that_counts_anew_after_a_restart_is_read_on(bus: Bus, server: TestServer) -> None:
    got: list[int | None] = []
    reader = await bus.read(TELEMETRY, lambda message: got.append(message.stream_sequence), start="new")
    await asyncio.wait_for(reader.caught_up(), 5)
    for _ in range(5):
        await bus.publish(TELEMETRY, NodeTelemetry(node="n", gpus=()), node="n")
    await until(lambda: got == [1, 2, 3, 4, 5])
    await server.kill()
    await server.start()
    await provision(bus, ttl_s={"leader": 300})  # the stream itself was in memory too
    await bus.publish(TELEMETRY, NodeTelemetry(node="n", gpus=()), node="n", deadline_s=10)
    await until(lambda: got == [1, 2, 3, 4, 5, 1])


async def test_a_large_backlog_is_read_completely(bus: Bus) -> None:
    await asyncio.gather(*(decide(bus, 1, f"g{number}") for number in range(3000)))
    seen = Seen()
    reader = await bus.read(DECISIONS, seen, start="last")
    await asyncio.wait_for(reader.caught_up(), 10)
    assert len(seen.generations) == 3000


async def test_a_slow_handler_is_no_missed_heartbeat(bus: Bus) -> None:
    handled: list[int] = []

    async def handle(message: Message[GpuDecision]) -> None:
        await asyncio.sleep(0.9)
        handled.append(message.event.generation)

    for number in range(4):
        await decide(bus, number, f"g{number}")
    reader = await bus.read(DECISIONS, handle, start="all")
    await asyncio.wait_for(reader.caught_up(), 10)
    assert handled == [0, 1, 2, 3]


async def test_a_reader_goes_on_after_an_event_that_is_not_valid(bus: Bus) -> None:
    seen, invalid = Seen(), []

    def note(raw: RawMessage, error: msgspec.DecodeError) -> None:
        invalid.append(raw.address)

    await bus.publish_raw("muxflow.decisions.n.bad", b"{", message_id="1")
    await decide(bus, 1)
    reader = await bus.read(DECISIONS, seen, on_invalid=note)
    await asyncio.wait_for(reader.caught_up(), 5)
    assert (seen.generations, invalid) == ({"g": [1]}, ["muxflow.decisions.n.bad"])


async def test_entries_are_complete_while_others_write(bus: Bus) -> None:
    """nats-py's keys() and watch() can end before the last key."""
    bucket = bus.kv(BUCKET_LEADER)
    revisions = await asyncio.gather(*(bucket.create(f"k{number}", _lease(number)) for number in range(500)))
    last = dict(enumerate(revisions))
    writing = True

    async def disturb() -> None:
        number = 0
        while writing:
            key = number % 500
            last[key] = await bucket.update(f"k{key}", _lease(key), last=last[key])
            number += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(disturb())
        for _ in range(20):
            entries = await bucket.entries()
            assert sorted(entry.key for entry in entries) == sorted(f"k{number}" for number in range(500))
        writing = False


async def test_entries_leave_out_what_was_deleted(bus: Bus) -> None:
    bucket = bus.kv(BUCKET_LEADER)
    await bucket.create("kept", _lease(1))
    await bucket.delete("gone", last=await bucket.create("gone", _lease(2)))
    assert [entry.key for entry in await bucket.entries()] == ["kept"]


async def test_a_watcher_sees_changes_and_deletions_over_a_restart(bus: Bus, server: TestServer) -> None:
    bucket = bus.kv(BUCKET_LEADER)
    changes: list[Entry[LeaderLease] | Removal] = []
    reader = bucket.watch(changes.append)
    await asyncio.wait_for(reader.caught_up(), 5)
    revision = await bucket.create("k", _lease(1))
    await until(lambda: len(changes) == 1)
    await server.kill()
    await server.start()
    revision = await bucket.update("k", _lease(2), last=revision)
    await until(lambda: len(changes) == 2, within_s=3)
    await bucket.delete("k", last=revision)
    await until(lambda: len(changes) == 3, within_s=3)
    assert isinstance(changes[2], Removal)
    await reader.stop()


async def test_draining_delivers_what_has_arrived(bus: Bus, server: TestServer) -> None:
    handled = 0
    arrived = asyncio.Event()

    async def handle(message: Message[NodeTelemetry]) -> None:
        nonlocal handled
        arrived.set()
        await asyncio.sleep(0.002)
        handled += 1

    listener = await server.connect(source="listener@here")
    await listener.subscribe(TELEMETRY, handle)
    for _ in range(200):
        await bus.publish_live(TELEMETRY, NodeTelemetry(node="n", gpus=()), node="n")
    await arrived.wait()
    await bus.requests.api("INFO", timeout_s=5)  # all 200 have left
    await asyncio.sleep(0.05)
    await listener.close()
    assert handled == 200


async def test_a_subscriber_that_raises_gets_the_next_event(bus: Bus) -> None:
    got: list[str] = []

    def handle(message: Message[NodeTelemetry]) -> None:
        got.append(message.names["node"])
        raise RuntimeError("broken")

    await bus.subscribe(TELEMETRY, handle)
    for node in ("a", "b"):
        await bus.publish_live(TELEMETRY, NodeTelemetry(node=node, gpus=()), node=node)
    await until(lambda: got == ["a", "b"])


async def test_raw_subscribers_get_bytes(bus: Bus) -> None:
    got: list[tuple[str, bytes]] = []
    await bus.subscribe_raw(TELEMETRY, lambda raw: got.append((raw.address, raw.data)))
    await bus.connection.send("muxflow.telemetry.n", b"not json")
    await until(lambda: got == [("muxflow.telemetry.n", b"not json")])


def _lease(number: int) -> LeaderLease:
    return LeaderLease(holder=str(number), time_ns=number)
