from __future__ import annotations

import asyncio
import json
import time

import pytest
from nats.aio.client import Client
from nats.micro import add_service
from nats.micro.service import Service, ServiceConfig

from muxflow.bus import Bus, Disconnected, Message, NoResponders, QueryError, queries
from muxflow.contracts import JobQuery, JobsQuery, JobsReply
from muxflow.contracts.catalogue import JOBS_SUBMIT, QUERY_JOB, QUERY_JOBS
from muxflow.testing import TestServer


async def count(message: Message[JobsQuery]) -> JobsReply:
    return JobsReply(jobs=(), total=message.event.limit)


async def nowhere(message: Message[JobQuery]) -> JobsReply:
    raise QueryError(404, f"no job {message.event.job!r} in tenant {message.names['tenant']!r}")


async def ask(bus: Bus, limit: int = 7) -> JobsReply:
    reply: JobsReply = await bus.request(QUERY_JOBS, JobsQuery(limit=limit), timeout_s=5, tenant="t")
    return reply


async def test_a_question_is_answered_by_the_event_that_belongs_to_it(bus: Bus) -> None:
    await bus.serve("muxflow-scheduler", "1.0.0", {QUERY_JOBS: count})
    reply = await ask(bus, 42)
    assert (reply.total, reply.source) == (42, "tester@here")


async def test_a_responder_says_what_is_wrong(bus: Bus) -> None:
    await bus.serve("muxflow-scheduler", "1.0.0", {QUERY_JOB: nowhere})
    with pytest.raises(QueryError, match="no job 'x' in tenant 't'") as refused:
        await bus.request(QUERY_JOB, JobQuery(job="x"), timeout_s=5, tenant="t")
    assert refused.value.code == 404


async def test_a_question_that_is_not_valid_is_told_the_field(bus: Bus) -> None:
    await bus.serve("muxflow-scheduler", "1.0.0", {QUERY_JOBS: count})
    answer = await bus.requests.ask("muxflow.query.scheduler.jobs.t", b'{"limit":-1}', timeout_s=5)
    assert answer.headers is not None
    assert answer.headers["Nats-Service-Error-Code"] == "400"
    assert "$.limit" in answer.headers["Nats-Service-Error"]


async def test_a_responder_that_breaks_answers_and_goes_on(bus: Bus) -> None:
    async def broken(message: Message[JobsQuery]) -> JobsReply:
        if message.event.limit == 1:
            raise RuntimeError("oops")
        return await count(message)

    await bus.serve("muxflow-scheduler", "1.0.0", {QUERY_JOBS: broken})
    with pytest.raises(QueryError, match="oops") as failed:
        await ask(bus, 1)
    assert failed.value.code == 500
    assert (await ask(bus, 2)).total == 2


async def test_nobody_there_is_said_at_once(bus: Bus) -> None:
    began = time.monotonic()
    with pytest.raises(NoResponders):
        await ask(bus)
    assert time.monotonic() - began < 1


async def test_a_slow_answer_does_not_hold_up_others(bus: Bus) -> None:
    release = asyncio.Event()

    async def slow(message: Message[JobsQuery]) -> JobsReply:
        if message.event.limit == 1:
            await release.wait()
        return await count(message)

    await bus.serve("muxflow-scheduler", "1.0.0", {QUERY_JOBS: slow})
    first = asyncio.create_task(ask(bus, 1))
    assert (await asyncio.wait_for(ask(bus, 2), 2)).total == 2
    release.set()
    assert (await first).total == 1


async def test_questions_are_answered_after_a_restart_of_the_server(bus: Bus, server: TestServer) -> None:
    await bus.serve("muxflow-scheduler", "1.0.0", {QUERY_JOBS: count})
    await server.kill()
    await server.start()
    async with asyncio.timeout(5):
        while True:
            try:
                await bus.connection.wait_connected()
                assert (await ask(bus)).total == 7
            except NoResponders:
                await asyncio.sleep(0.01)
            else:
                break


async def test_a_connection_that_is_lost_while_registering_is_followed_by_one_that_answers(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(client: Client, config: ServiceConfig) -> Service:
        monkeypatch.undo()
        service = await add_service(client, config)
        await client.close()
        return service

    monkeypatch.setattr(queries, "add_service", lose)
    await bus.serve("muxflow-scheduler", "1.0.0", {QUERY_JOBS: count})
    async with asyncio.timeout(5):
        while True:
            try:
                await bus.connection.wait_connected()
                assert (await ask(bus)).total == 7
            except (NoResponders, Disconnected):
                await asyncio.sleep(0.01)
            else:
                break


async def test_a_stopped_responder_takes_no_questions(bus: Bus) -> None:
    responder = await bus.serve("muxflow-scheduler", "1.0.0", {QUERY_JOBS: count})
    await ask(bus)
    await responder.stop()
    with pytest.raises(NoResponders):
        await ask(bus)


async def test_responders_are_discovered_like_any_nats_micro_service(bus: Bus) -> None:
    await bus.serve("muxflow-scheduler", "1.0.0", {QUERY_JOBS: count})
    answer = json.loads((await bus.requests.ask("$SRV.INFO", b"", timeout_s=5)).data)
    assert answer["name"] == "muxflow-scheduler"
    assert [endpoint["subject"] for endpoint in answer["endpoints"]] == ["muxflow.query.scheduler.jobs.*"]


async def test_only_questions_can_be_asked(bus: Bus) -> None:
    with pytest.raises(ValueError, match=r"jobs\.submit is no question"):
        await bus.request(JOBS_SUBMIT, JobsQuery(), timeout_s=1, tenant="t", job="j")
