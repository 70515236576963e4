"""Traps of publishing with acks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from muxflow.bus import (
    Bus,
    BusSettings,
    Forbidden,
    PayloadTooLarge,
    PublishRefused,
    PublishTimeout,
    StreamFull,
    WrongLastSequence,
)
from muxflow.bus.credentials import Principal
from muxflow.bus.provision import provision
from muxflow.contracts import GpuRequest, JobSpec, JobSubmit, Role
from muxflow.contracts.catalogue import DECISIONS, JOBS_FINISHED, JOBS_SUBMIT
from muxflow.testing import TestServer, running_server
from proxy import Proxy


def submission(padding: int = 0) -> JobSubmit:
    spec = JobSpec(command=("true",), env={"PADDING": "x" * padding}, gpu=GpuRequest(memory_bytes=1))
    return JobSubmit(spec=spec)


async def submit(bus: Bus, job: str = "j", *, padding: int = 0, deadline_s: float | None = 10) -> int:
    ack = await bus.publish(JOBS_SUBMIT, submission(padding), tenant="t", job=job, deadline_s=deadline_s)
    return ack.sequence


async def stored(bus: Bus, stream: str = "JOBS") -> int:
    answer = await bus.requests.api(f"STREAM.INFO.{stream}", timeout_s=5)
    return int(answer["state"]["messages"])


async def test_identity_source_and_time_are_filled_in_and_returned_by_the_server(bus: Bus) -> None:
    before = time.time_ns()
    await submit(bus)
    message = await bus.last(JOBS_SUBMIT, tenant="t", job="j")
    assert message is not None
    assert message.headers["Nats-Msg-Id"] == message.event.id != ""
    assert message.event.source == "tester@here"
    assert before <= message.event.time_ns <= time.time_ns()


async def test_a_refused_publish_ends_with_the_refusal(bus: Bus) -> None:
    await submit(bus)
    with pytest.raises(WrongLastSequence):
        await bus.publish(JOBS_SUBMIT, submission(), expect_last=0, tenant="t", job="j", deadline_s=10)


async def test_a_full_stream_is_said_so_and_loses_nothing(bus: Bus) -> None:
    await provision(bus, bytes_scale=0)  # a mebibyte each
    results = await asyncio.gather(
        *(submit(bus, str(number), padding=100_000) for number in range(15)), return_exceptions=True
    )
    refusals = [result for result in results if isinstance(result, BaseException)]
    assert refusals
    assert all(isinstance(refusal, StreamFull) and "maximum bytes" in str(refusal) for refusal in refusals)
    assert 5 < len(results) - len(refusals) == await stored(bus)


async def test_the_same_event_is_stored_once(bus: Bus) -> None:
    event = bus.completed(submission())
    first = await bus.publish(JOBS_SUBMIT, event, tenant="t", job="j")
    second = await bus.publish(JOBS_SUBMIT, event, tenant="t", job="j")
    assert (second.sequence, second.duplicate, await stored(bus)) == (first.sequence, True, 1)


async def test_an_ack_that_was_lost_leads_to_one_message_all_the_same(bus: Bus, server: TestServer) -> None:
    proxy = Proxy("127.0.0.1", server.process.port)
    await proxy.start()
    settings = server.settings()
    async with await Bus.connect(_with(settings, proxy.url), source="far@away") as far:
        await submit(far, "warm")
        proxy.swallow_answers()
        publishing = asyncio.create_task(submit(far, "lost"))
        async with asyncio.timeout(5):
            while await stored(bus) < 2:
                await asyncio.sleep(0.01)
        proxy.drop_connections()
        assert await asyncio.wait_for(publishing, 10) == 2
    await proxy.stop()
    assert await stored(bus) == 2


async def test_a_publish_waits_for_a_server_that_is_away_and_is_then_acked(bus: Bus, server: TestServer) -> None:
    await server.kill()
    publishing = asyncio.create_task(submit(bus))
    await asyncio.sleep(0.3)
    assert not publishing.done()
    await server.start()
    assert await asyncio.wait_for(publishing, 5) == 1


async def test_a_deadline_ends_a_publish_that_nobody_acks(bus: Bus, server: TestServer) -> None:
    await server.kill()
    with pytest.raises(PublishTimeout):
        await submit(bus, deadline_s=0.2)
    await server.start()
    await bus.connection.wait_connected()
    await bus.requests.api("STREAM.DELETE.JOBS", timeout_s=5)
    with pytest.raises(PublishTimeout):
        await submit(bus, deadline_s=0.3)


async def test_a_megabyte_passes_and_what_is_larger_is_refused_with_both_sizes(bus: Bus) -> None:
    await submit(bus, "large", padding=1_000_000)
    with pytest.raises(PayloadTooLarge):  # more than the stream takes
        await submit(bus, "larger", padding=1_100_000)
    with pytest.raises(PayloadTooLarge, match=r"30\d{5} bytes .* takes 2097152"):  # more than the server takes
        await submit(bus, "largest", padding=3_000_000)
    assert bus.connected
    assert await submit(bus, "small") == 2


async def test_no_more_publishes_are_under_way_than_the_window_allows(server: TestServer) -> None:
    settings = server.settings()
    async with await Bus.connect(_with(settings, server.url, max_outstanding=4), source="a@b") as bus:
        publishing = [asyncio.create_task(submit(bus, str(number))) for number in range(40)]
        most = 0
        while not all(task.done() for task in publishing):
            most = max(most, bus.requests.outstanding)
            await asyncio.sleep(0)
        assert sorted(task.result() for task in publishing) == list(range(1, 41))
    assert 1 < most <= 4


@pytest.fixture
async def guarded() -> AsyncIterator[TestServer]:
    principals = (Principal(role=Role.USER, bound_to="acme"), Principal(role=Role.NODE, bound_to="n1"))
    async with running_server(principals=principals) as running:
        yield running


async def test_a_forbidden_publish_says_so_at_once(guarded: TestServer) -> None:
    async with await guarded.connect(Role.USER, "acme") as bus:
        began = time.monotonic()
        with pytest.raises(Forbidden, match=r"muxflow\.jobs\.submit\.t\.j"):
            await submit(bus, deadline_s=20)
        assert time.monotonic() - began < 2


async def test_a_forbidden_subscription_says_so_at_once(guarded: TestServer) -> None:
    async with await guarded.connect(Role.USER, "acme") as bus:
        await bus.subscribe(JOBS_FINISHED, lambda _: None, bindings={"tenant": "acme"})
        with pytest.raises(Forbidden, match=r"muxflow\.jobs\.finished\.\*\.\*"):
            await bus.subscribe(JOBS_FINISHED, lambda _: None)


async def test_a_forbidden_call_of_jetstream_is_no_timeout(guarded: TestServer) -> None:
    async with await guarded.connect(Role.NODE, "n1") as bus:
        assert await bus.last(DECISIONS, node="n1", gpu="g") is None
        began = time.monotonic()
        with pytest.raises(Forbidden):
            await bus.last(DECISIONS, node="n2", gpu="g")
        assert time.monotonic() - began < 2


async def test_refusals_have_the_servers_code(bus: Bus) -> None:
    await submit(bus)
    with pytest.raises(PublishRefused) as refused:
        await bus.publish(JOBS_SUBMIT, submission(), expect_last=7, tenant="t", job="j")
    assert refused.value.code == 10071


def _with(settings: BusSettings, url: str, **changes: object) -> BusSettings:
    return msgspec.structs.replace(settings, servers=(url,), **changes)
