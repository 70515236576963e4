"""Users and online services have accounts of their own: no answer can be sent into what is not theirs.

The attacks first, then that nothing has changed for clients.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from muxflow.bus import Bus, Message, NoResponders, QueryError, WrongLastSequence
from muxflow.bus.credentials import Principal
from muxflow.contracts import (
    GpuRequest,
    JobAccepted,
    JobFinished,
    JobQuery,
    JobReply,
    JobSpec,
    JobsQuery,
    JobsReply,
    JobSubmit,
    LogsQuery,
    Role,
    RunStarted,
    SloReport,
)
from muxflow.contracts.catalogue import (
    JOBS_ACCEPTED,
    JOBS_CANCEL,
    JOBS_FINISHED,
    JOBS_SUBMIT,
    QUERY_JOB,
    QUERY_JOBS,
    QUERY_LOGS,
    RUNS_STARTED,
    SLO,
)
from muxflow.testing import TestServer, running_server
from world import World, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

NODE: Final = Principal(role=Role.NODE, bound_to="n1")
ACME: Final = Principal(role=Role.USER, bound_to="acme")
OTHER: Final = Principal(role=Role.USER, bound_to="n.1")
CHAT: Final = Principal(role=Role.ONLINE, bound_to="chat")
PRINCIPALS: Final = (
    NODE,
    ACME,
    OTHER,
    CHAT,
    *(Principal(role=role) for role in (Role.PROVISIONER, Role.SCHEDULER, Role.OPERATOR)),
)
SPEC: Final = JobSpec(command=("true",), gpu=GpuRequest(memory_bytes=2**30))

FOREIGN: Final = (
    "$KV.jobs.acme.j",
    "$KV.jobs.n=2E1.j",
    "$KV.leader.scheduler",
    "$KV.node_leases.n1",
    "muxflow.decisions.n1.g",
    "muxflow.jobs.finished.acme.j",
    "muxflow.jobs.submit.n=2E1.j",
    "muxflow.runs.exited.n1.acme.j",
    "muxflow.dead.scheduler",
    "muxflow.nodes.state.n1",
    "$JS.API.STREAM.PURGE.JOBS",
    "$JS.API.STREAM.DELETE.RUNS",
    "$JS.API.CONSUMER.DELETE.JOBS.scheduler",
    "$JS.ACK.JOBS.scheduler.1.1.1.1.0",
    "_INBOX_user_n=2E1.x",
    "_INBOX_scheduler.x",
    "$SRV.PING",
)
"""Where answers must not arrive."""
QUESTIONS: Final = (
    "muxflow.jobs.submit.acme.j",
    "muxflow.jobs.cancel.acme.j",
    "$JS.API.DIRECT.GET.JOBS.muxflow.jobs.submit.acme.seed",
    "muxflow.query.scheduler.jobs.acme",
    "muxflow.query.executor.logs.acme.n1",
)
"""What a user may send, each of which is answered."""


VITAL: Final = {
    "$KV.jobs.default.before": "KV_jobs",
    "$KV.leader.scheduler": "KV_leader",
    "$KV.node_leases.n1": "KV_node_leases",
    "muxflow.decisions.n1.GPU-n1-0": "DECISIONS",
}
"""What the system cannot do without, and where it is."""


class Buses:
    """Everybody's connections to one server."""

    def __init__(self, buses: dict[Principal, Bus]) -> None:
        self._buses = buses
        self.acme, self.other, self.chat, self.node = (buses[each] for each in (ACME, OTHER, CHAT, NODE))
        self.provisioner, self.scheduler, self.operator = (
            buses[Principal(role=role)] for role in (Role.PROVISIONER, Role.SCHEDULER, Role.OPERATOR)
        )

    async def close(self) -> None:
        for bus in self._buses.values():
            await bus.close()


async def answer_jobs(message: Message[JobsQuery]) -> JobsReply:
    del message
    return JobsReply(jobs=(), total=7)


async def answer_job(message: Message[JobQuery]) -> JobReply:
    raise QueryError(404, f"no {message.event.job} in {message.names['tenant']}")


async def answer_logs(message: Message[LogsQuery]) -> JobsReply:
    del message
    return JobsReply(jobs=(), total=0)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server() -> AsyncIterator[TestServer]:
    async with running_server(principals=PRINCIPALS) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def buses(server: TestServer) -> AsyncIterator[Buses]:
    found = Buses({each: await server.connect(each.role, each.bound_to) for each in PRINCIPALS})
    await found.scheduler.serve("muxflow-scheduler", "1.0.0", {QUERY_JOBS: answer_jobs, QUERY_JOB: answer_job})
    await found.node.serve("muxflow-executor", "1.0.0", {QUERY_LOGS: answer_logs}, bindings={"node": "n1"})
    await submit(found.acme, "acme", "seed")
    yield found
    await found.close()


async def submit(bus: Bus, tenant: str, job: str, **options: Any) -> int:
    ack = await bus.publish(JOBS_SUBMIT, JobSubmit(spec=SPEC), tenant=tenant, job=job, **options)
    return ack.sequence


async def state(provisioner: Bus) -> dict[str, tuple[int, int, int]]:
    """Everything that is stored, but for what a user may add to JOBS."""
    listed = await provisioner.requests.api("STREAM.LIST", timeout_s=5)
    return {
        stream["config"]["name"]: (
            stream["state"]["messages"],
            stream["state"]["last_seq"],
            stream["state"]["consumer_count"],
        )
        for stream in listed["streams"]
        if stream["config"]["name"] != "JOBS"
    }


async def subjects(operator: Bus) -> set[str]:
    answer = await operator.requests.api("STREAM.INFO.JOBS", {"subjects_filter": ">"}, timeout_s=5)
    return set(answer["state"]["subjects"])


async def delivered(bus: Bus) -> None:
    """Everything that the bus has sent has been handled by the server, and answered by whoever answers."""
    for _ in range(2):
        await bus.requests.ask("muxflow.query.scheduler.jobs.acme", b"{}", timeout_s=5)
        await bus.requests.ask("muxflow.query.executor.logs.acme.n1", b"{}", timeout_s=5)
        await bus.requests.ask("muxflow.jobs.submit.acme.seed", b"{}", timeout_s=5)


class Ear:
    """Counts what arrives in somebody's inbox."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def take(self, msg: Any) -> None:
        self.heard.append(msg.subject)


async def test_the_attack_works_within_one_account(buses: Buses) -> None:
    # Else the tests below prove nothing. Nodes are in the main account: infra/nats/README.md says what that means.
    before = await state(buses.provisioner)
    fact = RUNS_STARTED.of(node="n1", tenant="acme", job="j")
    await buses.node.connection.send(fact, b"{}", reply="$KV.jobs.acme.by-a-node")
    async with asyncio.timeout(10):
        while (await state(buses.provisioner))["KV_jobs"] == before["KV_jobs"]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_no_answer_to_a_user_arrives_where_it_may_not_write(buses: Buses, question: str) -> None:
    ears = {name: Ear() for name in ("_INBOX_user_n=2E1.x", "_INBOX_scheduler.x")}
    interests = [
        await buses.other.connection.subscribe("_INBOX_user_n=2E1.x", ears["_INBOX_user_n=2E1.x"].take),
        await buses.scheduler.connection.subscribe("_INBOX_scheduler.x", ears["_INBOX_scheduler.x"].take),
    ]
    before, jobs_before = await state(buses.provisioner), await subjects(buses.operator)
    for reply in FOREIGN:
        await buses.acme.connection.send(question, b"{}", reply=reply)
    await delivered(buses.acme)
    assert await state(buses.provisioner) == before
    assert await subjects(buses.operator) <= jobs_before | {question}
    assert [ear.heard for ear in ears.values()] == [[], []]
    for interest in interests:
        await interest.stop()


async def test_no_answer_to_an_online_service_arrives_anywhere(buses: Buses) -> None:
    # Nobody answers reports; a node that did would answer into the reporter's account.
    replies: list[str] = []
    last = asyncio.Event()

    async def answer(msg: Any) -> None:
        if msg.data == b"last":
            last.set()
            return
        replies.append(msg.reply)
        await msg.respond(b"{}")

    interest = await buses.node.connection.subscribe("muxflow.slo.*", answer)
    before = await state(buses.provisioner)
    for reply in FOREIGN:
        await buses.chat.connection.send("muxflow.slo.chat", b"{}", reply=reply)
    await buses.chat.connection.send("muxflow.slo.chat", b"last")
    await asyncio.wait_for(last.wait(), 10)
    await interest.stop()
    assert len(replies) >= len(FOREIGN) - 1  # the server itself refuses the reply that looks like an ack
    assert not set(replies) & set(FOREIGN)
    assert await state(buses.provisioner) == before


@pytest.mark.parametrize("header", ["Nats-Trace-Dest", "Nats-Schedule-Target", "Nats-Rollup"])
async def test_no_header_leads_a_message_elsewhere(buses: Buses, header: str) -> None:
    before = await state(buses.provisioner)
    for target in FOREIGN:
        headers = {header: target, "Nats-Schedule": "@at 2020-01-01T00:00:00Z"}
        await buses.acme.connection.send("muxflow.jobs.submit.acme.j", b"{}", headers=headers)
    await delivered(buses.acme)
    assert await state(buses.provisioner) == before


async def test_a_submission_is_acked_and_stored_once(buses: Buses) -> None:
    event = buses.acme.completed(JobSubmit(spec=SPEC))
    first = await buses.acme.publish(JOBS_SUBMIT, event, tenant="acme", job="once")
    again = await buses.acme.publish(JOBS_SUBMIT, event, tenant="acme", job="once")
    assert (first.stream, first.duplicate) == ("JOBS", False)
    assert (again.sequence, again.duplicate) == (first.sequence, True)
    stored = await buses.operator.last(JOBS_SUBMIT, tenant="acme", job="once")
    assert stored is not None
    assert stored.stream_sequence == first.sequence
    assert (stored.event.id, stored.event.spec) == (event.id, SPEC)


async def test_a_condition_on_the_last_sequence_holds(buses: Buses) -> None:
    sequence = await submit(buses.acme, "acme", "conditional", expect_last=0)
    with pytest.raises(WrongLastSequence):
        await submit(buses.acme, "acme", "conditional", expect_last=0)
    assert await submit(buses.acme, "acme", "conditional", expect_last=sequence) > sequence


async def test_many_submissions_at_once_travel_as_batches(buses: Buses) -> None:
    sequences = await asyncio.gather(*(submit(buses.acme, "acme", f"many-{number}") for number in range(300)))
    assert len(set(sequences)) == 300


async def test_a_plain_pub_without_a_reply_is_stored(server: TestServer, buses: Buses) -> None:
    # What the README promises to any client; a raw socket could not sign the nonce, so the signing is the client's.
    await buses.acme.connection.send("muxflow.jobs.cancel.acme.plain", b'{"reason":"by hand"}')
    await delivered(buses.acme)
    stored = await buses.operator.last(JOBS_CANCEL, tenant="acme", job="plain")
    assert stored is not None
    assert stored.event.reason == "by hand"


async def test_a_user_finds_its_own_newest_message_and_no_other_tenants(buses: Buses) -> None:
    sequence = await submit(buses.acme, "acme", "mine")
    await submit(buses.other, "n.1", "theirs")
    found = await buses.acme.last(JOBS_SUBMIT, tenant="acme", job="mine")
    assert found is not None
    assert found.stream_sequence == sequence
    for body in ({"multi_last": ["muxflow.jobs.submit.>"]}, {"seq": 1, "next_by_subj": "muxflow.jobs.>"}):
        answer = await buses.acme.requests.ask(
            "$JS.API.DIRECT.GET.JOBS.muxflow.jobs.submit.acme.mine", json.dumps(body).encode(), timeout_s=5
        )
        assert (answer.headers or {}).get("Status") == "408"


async def test_questions_are_answered_and_refusals_keep_their_code_and_words(buses: Buses) -> None:
    reply = await buses.acme.request(QUERY_JOBS, JobsQuery(), timeout_s=5, tenant="acme")
    assert reply.total == 7
    with pytest.raises(QueryError, match="no x in acme") as raised:
        await buses.acme.request(QUERY_JOB, JobQuery(job="x"), timeout_s=5, tenant="acme")
    assert raised.value.code == 404


async def test_a_question_that_nobody_hears_fails_at_once(buses: Buses) -> None:
    with pytest.raises(NoResponders):
        await buses.acme.request(QUERY_LOGS, LogsQuery(job="x"), timeout_s=30, tenant="acme", node="absent")


async def test_outcomes_and_facts_are_heard_live_once_and_only_by_their_tenant(buses: Buses) -> None:
    heard: dict[str, list[str]] = {"acme": [], "n.1": []}

    def note(tenant: str) -> Callable[[Message[Any]], None]:
        return lambda message: heard[tenant].append(f"{message.subject.name} {message.names['job']}")

    subscriptions = [
        await bus.subscribe(subject, note(tenant), bindings={"tenant": tenant})
        for bus, tenant in ((buses.acme, "acme"), (buses.other, "n.1"))
        for subject in (JOBS_SUBMIT, JOBS_ACCEPTED, JOBS_FINISHED, RUNS_STARTED)
    ]
    for tenant, job in (("acme", "a"), ("n.1", "b")):
        accepted = JobAccepted(tenant=tenant, job=job, submission_id="s")
        finished = JobFinished(tenant=tenant, job=job, attempt=1, node="n1", gpu="g")
        started = RunStarted(tenant=tenant, job=job, node="n1", gpu="g", attempt=1, pid=1, boot_id="b")
        await submit(buses.operator, tenant, job)
        await submit(buses.acme if tenant == "acme" else buses.other, tenant, job)
        await buses.scheduler.publish(JOBS_ACCEPTED, accepted, tenant=tenant, job=job)
        await buses.node.publish(RUNS_STARTED, started, node="n1", tenant=tenant, job=job)
        await buses.scheduler.publish(JOBS_FINISHED, finished, tenant=tenant, job=job)
    async with asyncio.timeout(10):
        while min(map(len, heard.values())) < 5:
            await asyncio.sleep(0.01)
    for subscription in subscriptions:
        await subscription.stop()
    kinds = ("jobs.accepted", "jobs.finished", "jobs.submit", "jobs.submit", "runs.started")
    assert sorted(heard["acme"]) == [f"{kind} a" for kind in kinds]
    assert sorted(heard["n.1"]) == [f"{kind} b" for kind in kinds]


async def test_an_online_services_report_reaches_everybody_who_reads_it(buses: Buses) -> None:
    heard: list[str] = []
    subscriptions = [
        await bus.subscribe(SLO, lambda message: heard.append(message.names["workload"]))
        for bus in (buses.node, buses.operator)
    ]
    report = SloReport(workload="chat", latency_p99_ms=1.0, requests=3, window_s=1.0)
    await buses.chat.publish_live(SLO, report, workload="chat")
    async with asyncio.timeout(10):
        while len(heard) < 2:
            await asyncio.sleep(0.01)
    for subscription in subscriptions:
        await subscription.stop()
    assert heard == ["chat", "chat"]


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.timeout(120)
async def test_under_attack_the_scheduler_goes_on(tmp_path: Path, servers: int) -> None:
    async with running(tmp_path, servers=servers, nodes={"n1": 1}) as world, await _user(world) as user:
        finished: asyncio.Queue[str] = asyncio.Queue()
        await user.subscribe(
            JOBS_FINISHED, lambda message: finished.put_nowait(message.names["job"]), bindings={"tenant": "default"}
        )
        await submit(user, "default", "before")
        async with asyncio.timeout(60):
            assert await finished.get() == "before"
        for reply in VITAL:
            for question in ("muxflow.jobs.cancel.default.x", "muxflow.query.scheduler.jobs.default"):
                await user.connection.send(question, b"{}", reply=reply)
        await submit(user, "default", "after")
        async with asyncio.timeout(60):
            assert await finished.get() == "after"
        async with await world.connect(Principal(role=Role.PROVISIONER)) as provisioner:
            for address, stream in VITAL.items():
                newest = await provisioner.requests.api(
                    f"STREAM.MSG.GET.{stream}", {"last_by_subj": address}, timeout_s=10
                )
                assert b'"stream"' not in base64.b64decode(newest["message"]["data"])
        log = (world.root / "scheduler.log").read_text()
        assert "lead lost" not in log
        assert "damaged" not in log


async def _user(world: World) -> Bus:
    return await world.connect(Principal(role=Role.USER, bound_to="default"))
