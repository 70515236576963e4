"""Traps of consuming a durable, and the promises of `Bus.consume`."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from muxflow.bus import Bus, Message, RawMessage, Retry, Undeliverable
from muxflow.contracts import (
    DeadLetter,
    Durable,
    EvictRequest,
    GpuRequest,
    JobCancel,
    JobSpec,
    JobSubmit,
)
from muxflow.contracts.catalogue import DEAD, DURABLES, JOBS_CANCEL, JOBS_SUBMIT, REQUESTS_EVICT
from muxflow.testing import TestServer

Reshape = Callable[..., Awaitable[Durable]]

JOBS, RUNS, EVICTIONS = DURABLES
SPEC = JobSpec(command=("true",), gpu=GpuRequest(memory_bytes=1))


def eviction(reason: str = "") -> EvictRequest:
    return EvictRequest(node="n", gpu="g", reason=reason)


async def evict(bus: Bus, gpu: str = "g", reason: str = "") -> None:
    await bus.publish(REQUESTS_EVICT, eviction(reason), node="n", gpu=gpu)


async def info(bus: Bus, durable: Durable) -> dict[str, Any]:
    return await bus.requests.api(f"CONSUMER.INFO.{durable.stream}.{durable.name}", timeout_s=5)


async def until(condition: Callable[[], bool], *, within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


async def until_acked(bus: Bus, durable: Durable, *, within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while (state := await info(bus, durable))["num_ack_pending"] or state["num_pending"]:
            await asyncio.sleep(0.02)


async def test_a_burst_after_an_idle_time_is_delivered_at_once(bus: Bus) -> None:
    got: list[str] = []
    await bus.consume(EVICTIONS, {"requests.evict": lambda message: got.append(message.event.reason)})
    await evict(bus, reason="first")
    await until(lambda: len(got) == 1)
    await asyncio.sleep(2.6)  # longer than heartbeats and the watchdog: the puller has seen idleness
    began = time.monotonic()
    for number in range(20):
        await evict(bus, reason=str(number))
    await until(lambda: len(got) == 21)
    assert time.monotonic() - began < 1


async def test_a_message_is_acked_when_its_handler_has_returned_and_not_before(bus: Bus) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    async def handle(message: Message[EvictRequest]) -> None:
        begun.set()
        await finish.wait()

    await bus.consume(EVICTIONS, {"requests.evict": handle})
    await evict(bus)
    await begun.wait()
    assert (await info(bus, EVICTIONS))["num_ack_pending"] == 1
    finish.set()
    await until_acked(bus, EVICTIONS)


async def test_a_handler_that_raises_gets_the_message_again_after_growing_delays(bus: Bus) -> None:
    times: list[float] = []

    def handle(message: Message[EvictRequest]) -> None:
        times.append(time.monotonic())
        assert message.deliveries == len(times)
        if len(times) < 4:
            raise RuntimeError("not yet")

    await bus.consume(EVICTIONS, {"requests.evict": handle})
    await evict(bus)
    await until(lambda: len(times) == 4)
    await until_acked(bus, EVICTIONS)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert [pause >= least for pause, least in zip(pauses, (0.19, 0.39, 0.79), strict=True)] == [True] * 3
    assert sum(pauses) < 3


async def test_a_handler_may_say_when_it_wants_the_message_again(bus: Bus) -> None:
    times: list[float] = []

    def handle(message: Message[EvictRequest]) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise Retry("busy", delay_s=0.7)

    await bus.consume(EVICTIONS, {"requests.evict": handle})
    await evict(bus)
    await until(lambda: len(times) == 2)
    assert 0.69 < times[1] - times[0] < 2


async def test_messages_about_one_job_are_handled_one_after_the_other_and_others_beside_them(bus: Bus) -> None:
    running: dict[str, int] = {}
    order: list[tuple[str, str]] = []
    most_at_once = 0

    async def handle(message: Message[Any]) -> None:
        nonlocal most_at_once
        job = message.names["job"]
        running[job] = running.get(job, 0) + 1
        assert running[job] == 1, "two handlers for one job at a time"
        most_at_once = max(most_at_once, sum(running.values()))
        await asyncio.sleep(0.05)
        running[job] -= 1
        order.append((job, message.subject.name))

    for job in ("a", "b", "c", "d"):
        await bus.publish(JOBS_SUBMIT, JobSubmit(spec=SPEC), tenant="t", job=job)
        await bus.publish(JOBS_CANCEL, JobCancel(), tenant="t", job=job)
    await bus.consume(JOBS, {"jobs.submit": handle, "jobs.cancel": handle})
    await until(lambda: len(order) == 8)
    assert most_at_once == 4
    for job in ("a", "b", "c", "d"):
        assert [kind for name, kind in order if name == job] == ["jobs.submit", "jobs.cancel"]


async def test_a_long_handler_keeps_its_message(bus: Bus, reshape: Reshape) -> None:
    durable = await reshape(EVICTIONS, ack_wait_s=0.5)
    calls = 0

    async def handle(message: Message[EvictRequest]) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(2)

    await bus.consume(durable, {"requests.evict": handle})
    await evict(bus)
    await until_acked(bus, durable)
    assert calls == 1
    assert (await info(bus, durable))["num_redelivered"] == 0


async def test_a_message_that_comes_again_while_it_is_handled_is_handled_once(
    bus: Bus, server: TestServer, reshape: Reshape
) -> None:
    durable = await reshape(EVICTIONS, ack_wait_s=0.6)
    calls = 0
    finish = asyncio.Event()

    async def handle(message: Message[EvictRequest]) -> None:
        nonlocal calls
        calls += 1
        await finish.wait()

    await bus.consume(durable, {"requests.evict": handle})
    await evict(bus)
    await until(lambda: calls == 1)
    await server.kill()
    await asyncio.sleep(1.2)  # no sign of progress reaches the server for two ack waits
    await server.start()
    await asyncio.sleep(1.5)
    finish.set()
    await until_acked(bus, durable)
    assert calls == 1


async def test_bytes_that_are_not_json_become_a_dead_letter_with_the_original_bytes(bus: Bus) -> None:
    await bus.consume(EVICTIONS, {"requests.evict": lambda _: None})
    await bus.publish_raw("muxflow.requests.evict.n.g", b"\xff\x00 no json", message_id="1", headers={"a": "b"})
    letter = await dead_letter(bus)
    assert (letter.data, letter.subject) == (b"\xff\x00 no json", "muxflow.requests.evict.n.g")
    assert (letter.stream, letter.stream_sequence, letter.deliveries) == ("REQUESTS", 1, 1)
    assert letter.headers["a"] == "b"
    assert "malformed" in letter.reason
    await until_acked(bus, EVICTIONS)


async def test_a_subject_with_a_token_that_is_no_name_is_a_dead_letter(bus: Bus) -> None:
    await bus.consume(EVICTIONS, {"requests.evict": lambda _: None})
    await bus.publish_raw("muxflow.requests.evict.n=2e.g", b'{"node":"n","gpu":"g"}', message_id="1")
    assert "n=2e" in (await dead_letter(bus)).reason


async def test_json_that_is_not_valid_is_for_whoever_asked_for_it(bus: Bus) -> None:
    seen: list[tuple[str, str]] = []

    def invalid(raw: RawMessage, error: msgspec.ValidationError) -> bool:
        seen.append((raw.names["job"], str(error)))
        return raw.names["job"] == "answered"

    handlers = {"jobs.submit": lambda _: None, "jobs.cancel": lambda _: None}
    await bus.consume(JOBS, handlers, on_invalid=invalid)
    body = b'{"spec":{"command":[],"gpu":{"memory_bytes":1}}}'
    for job in ("answered", "buried"):
        await bus.publish_raw(f"muxflow.jobs.submit.t.{job}", body, message_id=job)
    letter = await dead_letter(bus)
    await until_acked(bus, JOBS)
    assert [job for job, _ in seen] == ["answered", "buried"]
    assert "$.spec.command" in seen[0][1]
    assert letter.subject == "muxflow.jobs.submit.t.buried"


async def test_events_of_plain_clients_get_an_identity_that_stays_the_same_when_they_come_again(bus: Bus) -> None:
    seen: list[EvictRequest] = []

    def handle(message: Message[EvictRequest]) -> None:
        seen.append(message.event)
        if len(seen) == 1:
            raise Retry(delay_s=0.01)

    await bus.consume(EVICTIONS, {"requests.evict": handle})
    await bus.connection.send("muxflow.requests.evict.n.g", b'{"node":"n","gpu":"g"}')  # no ack asked for, no headers
    await until(lambda: len(seen) == 2)
    assert seen[0] == seen[1]
    assert (seen[0].id, seen[0].source) == ("REQUESTS:1", "unknown")
    assert abs(seen[0].time_ns - time.time_ns()) < 10e9


async def test_a_handler_can_say_that_a_message_will_never_do(bus: Bus) -> None:
    def handle(message: Message[EvictRequest]) -> None:
        raise Undeliverable("no such node")

    await bus.consume(EVICTIONS, {"requests.evict": handle})
    await evict(bus, reason="x")
    assert (await dead_letter(bus)).reason == "no such node"


async def test_a_message_whose_deliveries_are_used_up_becomes_a_dead_letter(bus: Bus, reshape: Reshape) -> None:
    durable = await reshape(EVICTIONS, max_deliver=3)
    calls = 0

    def handle(message: Message[EvictRequest]) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("broken")

    await bus.consume(durable, {"requests.evict": handle})
    await evict(bus)
    letter = await dead_letter(bus)
    assert (calls, letter.deliveries) == (3, 3)
    assert "RuntimeError: broken" in letter.reason
    await until_acked(bus, durable)


async def test_what_kills_its_handler_each_time_is_in_dead_through_the_servers_advisory(
    bus: Bus, reshape: Reshape
) -> None:
    await reshape(EVICTIONS, max_deliver=2, ack_wait_s=0.2)
    await evict(bus)
    taken: list[Msg] = []

    async def take(msg: Msg) -> None:  # and never be heard of again
        taken.append(msg)

    await bus.connection.subscribe("_INBOX.victim", take)
    for count in (1, 2, 2):
        request = b'{"batch":1,"expires":3000000000}'
        await bus.connection.send("$JS.API.CONSUMER.MSG.NEXT.REQUESTS.scheduler", request, reply="_INBOX.victim")
        await until(lambda count=count: len(taken) == count)  # type: ignore[misc]  # bound in its own round
    advisory = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.REQUESTS.scheduler"
    async with asyncio.timeout(10):
        while True:
            found = await bus.requests.ask(f"$JS.API.DIRECT.GET.DEAD.{advisory}", b"", timeout_s=5)
            if found.data:
                break
            await asyncio.sleep(0.05)
    assert msgspec.json.decode(found.data)["stream_seq"] == 1


async def test_a_payload_too_large_for_a_letter_is_named_by_its_place(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus.connection, "max_payload", 60_000)
    await bus.consume(EVICTIONS, {"requests.evict": lambda _: None})
    await bus.publish_raw("muxflow.requests.evict.n.g", b"{" * 50_000, message_id="1")
    letter = await dead_letter(bus)
    assert (letter.data, letter.stream, letter.stream_sequence) == (b"", "REQUESTS", 1)
    assert "50000 bytes" in letter.reason


async def test_a_deleted_durable_is_not_asked_for_in_a_hot_loop_and_resumes_when_it_is_back(
    bus: Bus, reshape: Reshape
) -> None:
    got: list[str] = []
    await bus.consume(EVICTIONS, {"requests.evict": lambda message: got.append(message.event.reason)})
    await evict(bus, reason="before")
    await until(lambda: got == ["before"])
    await until_acked(bus, EVICTIONS)
    with capture_logs() as logs:
        await bus.requests.api("CONSUMER.DELETE.REQUESTS.scheduler", timeout_s=5)
        sent = bus.connection.client.stats["out_msgs"]
        await asyncio.sleep(2)
        assert bus.connection.client.stats["out_msgs"] - sent < 15
        await reshape(EVICTIONS)
        await evict(bus, reason="after")
        await until(lambda: got[-1] == "after")
    complaints = [entry for entry in logs if entry["log_level"] == "warning"]
    assert len(complaints) <= 2, "one line when it went, one more if the reason changed"


async def test_a_restarted_server_goes_on_delivering_within_seconds(bus: Bus, server: TestServer) -> None:
    got: list[str] = []
    await bus.consume(EVICTIONS, {"requests.evict": lambda message: got.append(message.event.reason)})
    for number in range(5):
        await server.kill()
        await server.start()
        began = time.monotonic()
        await evict(bus, reason=str(number))
        await until(lambda number=number: got[-1:] == [str(number)])  # type: ignore[misc]  # bound in its own round
        assert time.monotonic() - began < 3


async def test_stopping_gives_back_what_no_handler_has_begun_and_waits_for_what_runs(bus: Bus) -> None:
    begun: list[str] = []
    done: list[str] = []

    async def handle(message: Message[EvictRequest]) -> None:
        begun.append(message.event.reason)
        await asyncio.sleep(0.3)
        done.append(message.event.reason)

    for number in range(3):  # one subject: one after the other
        await evict(bus, reason=str(number))
    consumer = await bus.consume(EVICTIONS, {"requests.evict": handle})
    await until(lambda: begun == ["0"])
    assert consumer.lag.in_hand == 3
    await consumer.stop()
    assert done == ["0"]
    again: list[str] = []
    await bus.consume(EVICTIONS, {"requests.evict": lambda message: again.append(message.event.reason)})
    await until(lambda: sorted(again) == ["1", "2"], within_s=3)


async def test_every_subject_of_a_durable_needs_a_handler(bus: Bus) -> None:
    with pytest.raises(ValueError, match=r"jobs\.cancel"):
        await bus.consume(JOBS, {"jobs.submit": lambda _: None})


async def dead_letter(bus: Bus) -> DeadLetter:
    """Wait for a dead letter of the service whose durables are used here."""
    async with asyncio.timeout(10):
        while (found := await bus.last(DEAD, service="scheduler")) is None:
            await asyncio.sleep(0.02)
    event: DeadLetter = found.event
    return event
