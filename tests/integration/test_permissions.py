"""Every role against every subject of section 3 of the design, on a real server: only its own rows succeed.

The tables are written by hand. They are not derived from the catalogue, so that a slip there fails here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeout

from muxflow.bus.credentials import Principal
from muxflow.contracts import Role
from muxflow.testing import TestServer, running_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

P: Final = Principal
PRINCIPALS: Final = {
    "provisioner": P(role=Role.PROVISIONER),
    "scheduler": P(role=Role.SCHEDULER),
    "profiler": P(role=Role.PROFILER),
    "predictor": P(role=Role.PREDICTOR),
    "kube": P(role=Role.KUBE),
    "node": P(role=Role.NODE, bound_to="n.1"),
    "online": P(role=Role.ONLINE, bound_to="chat"),
    "user": P(role=Role.USER, bound_to="acme"),
    "operator": P(role=Role.OPERATOR),
    "observer": P(role=Role.OBSERVER),
}
_PEOPLE: Final = "operator observer"
_OUTCOME: Final = ("scheduler", f"user kube {_PEOPLE}")
_FACT: Final = ("node kube operator", f"scheduler user {_PEOPLE}")

# Subject, who may publish it, who may read it live. Node n.1, tenant acme, workload chat: the bound roles' own.
OWN: Final = (
    ("muxflow.jobs.submit.acme.j", "user kube operator", "scheduler user operator"),
    ("muxflow.jobs.cancel.acme.j", "user kube operator", "scheduler user operator"),
    ("muxflow.jobs.accepted.acme.j", *_OUTCOME),
    ("muxflow.jobs.rejected.acme.j", *_OUTCOME),
    ("muxflow.jobs.finished.acme.j", *_OUTCOME),
    ("muxflow.jobs.failed.acme.j", *_OUTCOME),
    ("muxflow.jobs.cancelled.acme.j", *_OUTCOME),
    ("muxflow.runs.started.n=2E1.acme.j", *_FACT),
    ("muxflow.runs.checkpointed.n=2E1.acme.j", *_FACT),
    ("muxflow.runs.evicted.n=2E1.acme.j", *_FACT),
    ("muxflow.runs.exited.n=2E1.acme.j", *_FACT),
    ("muxflow.decisions.n=2E1.g", "scheduler", "scheduler profiler node kube operator"),
    ("muxflow.requests.profile.k", "profiler predictor operator", "scheduler operator"),
    ("muxflow.requests.probe.k", "profiler predictor operator", "scheduler operator"),
    ("muxflow.requests.evict.n=2E1.g", "operator", "scheduler operator"),
    ("muxflow.requests.device.n=2E1.g", "operator", "scheduler node operator"),
    ("muxflow.nodes.state.n=2E1", "node", f"scheduler profiler predictor kube {_PEOPLE}"),
    ("muxflow.online.state.n=2E1.g", "node", f"node scheduler profiler {_PEOPLE}"),
    ("muxflow.devices.state.n=2E1.g", "node", f"node scheduler {_PEOPLE}"),
    ("muxflow.devices.fault.n=2E1.g", "node", f"node scheduler {_PEOPLE}"),
    ("muxflow.profiles.offline.k.A100", "profiler", f"profiler predictor scheduler {_PEOPLE}"),
    ("muxflow.profiles.online.chat.A100", "profiler", f"profiler predictor scheduler {_PEOPLE}"),
    ("muxflow.profiles.corun.k.chat.A100", "profiler", f"profiler predictor scheduler {_PEOPLE}"),
    ("muxflow.speeds.m", "predictor", f"predictor scheduler {_PEOPLE}"),
    ("muxflow.alerts.eviction.n=2E1", "node", _PEOPLE),
    ("muxflow.alerts.device.n=2E1", "node", _PEOPLE),
    ("muxflow.alerts.online.n=2E1", "node", _PEOPLE),
    ("muxflow.telemetry.n=2E1", "node", f"profiler {_PEOPLE}"),
    ("muxflow.slo.chat", "online", f"node {_PEOPLE}"),
    ("muxflow.query.scheduler.jobs.acme", "user operator", "scheduler"),
    ("muxflow.query.scheduler.job.acme", "user operator", "scheduler"),
    ("muxflow.query.scheduler.nodes.acme", _PEOPLE, "scheduler"),
    ("muxflow.query.scheduler.devices.acme", _PEOPLE, "scheduler"),
    ("muxflow.query.scheduler.queue.acme", "user operator", "scheduler"),
    ("muxflow.query.predictor.predict.acme", "user operator", "predictor"),
    ("muxflow.query.predictor.speeds.acme", "scheduler operator", "predictor"),
    ("muxflow.query.executor.logs.acme.n=2E1", "user operator", "node"),
    ("muxflow.dead.scheduler", "scheduler profiler predictor kube node", "operator"),
    # Buckets: records and the lead are the scheduler's, a lease is its node's (and the scheduler's to fence).
    ("$KV.jobs.acme.j", "scheduler", ""),
    ("$KV.leader.scheduler", "scheduler", ""),
    ("$KV.node_leases.n=2E1", "scheduler node", ""),
    # Models are the predictor's alone; nobody reads them live.
    ("$O.models.C.nuid", "predictor", ""),
    ("$O.models.M.name", "predictor", ""),
    # Nobody's.
    ("muxflow.jobs.submit", "", ""),
    ("muxflow.jobs.other.acme.j", "", ""),
    ("muxflow.secret", "", ""),
    ("$JS.ACK.JOBS.scheduler.1.1.1.1.0", "scheduler", ""),
    ("$JS.ACK.RUNS.scheduler.1.1.1.1.0", "scheduler", ""),
    ("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.JOBS.scheduler", "", ""),
    ("$SYS.REQ.SERVER.PING", "", ""),
)
# The same for another node, tenant and workload: what remains is what is not bound.
OTHERS: Final = (
    ("muxflow.jobs.submit.other.j", "kube operator", "scheduler operator"),
    ("muxflow.jobs.cancel.other.j", "kube operator", "scheduler operator"),
    ("muxflow.jobs.finished.other.j", "scheduler", f"kube {_PEOPLE}"),
    ("muxflow.runs.exited.n2.acme.j", "kube operator", f"scheduler user {_PEOPLE}"),
    ("muxflow.runs.exited.n2.other.j", "kube operator", f"scheduler {_PEOPLE}"),
    ("muxflow.decisions.n2.g", "scheduler", "scheduler profiler kube operator"),
    ("muxflow.requests.device.n2.g", "operator", "scheduler operator"),
    ("muxflow.nodes.state.n2", "", f"scheduler profiler predictor kube {_PEOPLE}"),
    ("muxflow.online.state.n2.g", "", f"scheduler profiler {_PEOPLE}"),
    ("muxflow.devices.state.n2.g", "", f"scheduler {_PEOPLE}"),
    ("muxflow.devices.fault.n2.g", "", f"scheduler {_PEOPLE}"),
    ("muxflow.alerts.eviction.n2", "", _PEOPLE),
    ("muxflow.telemetry.n2", "", f"profiler {_PEOPLE}"),
    ("muxflow.slo.search", "", f"node {_PEOPLE}"),
    ("muxflow.query.scheduler.jobs.other", "operator", "scheduler"),
    ("muxflow.query.scheduler.job._all", "operator", "scheduler"),
    ("muxflow.query.predictor.predict.other", "operator", "predictor"),
    ("muxflow.query.executor.logs.other.n=2E1", "operator", "node"),
    ("muxflow.query.executor.logs.other.n2", "operator", ""),
    ("$KV.node_leases.n2", "scheduler", ""),
)
# Subscriptions that would see more than one row.
WIDE: Final = (">", "muxflow.>", "muxflow.jobs.>", "muxflow.jobs.*.*.*", "muxflow.runs.>", "_INBOX.>", "$KV.>", "$JS.>")
# Durable, and who may pull from it.
DURABLES: Final = (
    ("JOBS.scheduler", "scheduler"),
    ("RUNS.scheduler", "scheduler"),
    ("REQUESTS.scheduler", "scheduler"),
)
# Stream, filter, and who may make a consumer with it.
CONSUMERS: Final = (
    ("JOBS", "muxflow.jobs.submit.acme.*", "operator"),
    ("JOBS", "muxflow.jobs.submit.*.*", "operator"),
    ("JOBS", "muxflow.jobs.finished.*.*", "operator"),
    ("JOBS", "muxflow.jobs.>", ""),
    ("RUNS", "muxflow.runs.exited.*.acme.*", "operator"),
    ("RUNS", "muxflow.runs.exited.*.*.*", "operator"),
    ("REQUESTS", "muxflow.requests.evict.*.*", "operator"),
    ("DECISIONS", "muxflow.decisions.n=2E1.*", "node scheduler profiler kube operator"),
    ("DECISIONS", "muxflow.decisions.n2.*", "scheduler profiler kube operator"),
    ("DECISIONS", "muxflow.decisions.*.*", "scheduler profiler kube operator"),
    ("DECISIONS", "muxflow.decisions.>", ""),
    ("DEVICE_REQUESTS", "muxflow.requests.device.n=2E1.*", "node scheduler operator"),
    ("DEVICE_REQUESTS", "muxflow.requests.device.n2.*", "scheduler operator"),
    ("NODES", "muxflow.nodes.state.*", f"scheduler profiler predictor kube {_PEOPLE}"),
    ("NODES", "muxflow.online.state.n=2E1.*", f"node scheduler profiler {_PEOPLE}"),
    ("NODES", "muxflow.online.state.*.*", f"scheduler profiler {_PEOPLE}"),
    ("DEVICES", "muxflow.devices.state.n=2E1.*", f"node scheduler {_PEOPLE}"),
    ("DEVICES", "muxflow.devices.state.*.*", f"scheduler {_PEOPLE}"),
    ("PROFILES", "muxflow.profiles.offline.*.*", f"profiler predictor scheduler {_PEOPLE}"),
    ("PROFILES", "muxflow.profiles.corun.*.*.*", f"profiler predictor scheduler {_PEOPLE}"),
    ("PROFILES", "muxflow.speeds.*", f"predictor scheduler {_PEOPLE}"),
    ("ALERTS", "muxflow.alerts.eviction.*", _PEOPLE),
    ("TELEMETRY", "muxflow.telemetry.*", f"profiler {_PEOPLE}"),
    ("DEAD", "muxflow.dead.*", "operator"),
    ("DEAD", "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>", "operator"),
    ("OBJ_models", "$O.models.C.*", "predictor"),
    ("OBJ_models", "$O.models.M.*", "predictor"),
    ("OBJ_models", "$O.models.>", ""),
    ("KV_jobs", "$KV.jobs.*.*", "scheduler"),
    ("KV_leader", "$KV.leader.*", "scheduler"),
    ("KV_node_leases", "$KV.node_leases.*", "scheduler"),
    ("KV_node_leases", "$KV.node_leases.n=2E1", "node scheduler"),
    ("KV_node_leases", "$KV.node_leases.n2", "scheduler"),
)
# Requests of the administrative kind, and who may make them.
ADMINISTRATION: Final = (
    ("STREAM.CREATE.X", ""),
    ("STREAM.UPDATE.JOBS", ""),
    ("STREAM.DELETE.JOBS", ""),
    ("STREAM.PURGE.JOBS", "scheduler"),  # it deletes what ended long ago
    ("STREAM.PURGE.RUNS", ""),
    ("STREAM.PURGE.OBJ_models", "predictor"),  # chunks of what it has replaced
    ("STREAM.INFO.OBJ_models", "operator"),
    ("DIRECT.GET.OBJ_models", ""),
    ("DIRECT.GET.OBJ_models.$O.models.M.name", "predictor"),
    ("DIRECT.GET.OBJ_models.$O.models.C.nuid", ""),
    ("STREAM.MSG.DELETE.JOBS", ""),
    ("STREAM.MSG.GET.JOBS", "operator"),  # originals of dead letters
    ("STREAM.MSG.GET.KV_jobs", ""),
    ("STREAM.INFO.JOBS", "scheduler operator"),
    ("STREAM.INFO.DEAD", "operator"),
    ("STREAM.SNAPSHOT.JOBS", ""),
    ("STREAM.RESTORE.JOBS", ""),
    ("CONSUMER.INFO.JOBS.scheduler", "operator scheduler"),  # a purge leaves what was not handled yet
    ("CONSUMER.DELETE.JOBS.scheduler", ""),
    ("CONSUMER.PAUSE.JOBS.scheduler", ""),
    ("CONSUMER.CREATE.JOBS", ""),
    ("CONSUMER.CREATE.JOBS.scheduler", ""),
    ("CONSUMER.DURABLE.CREATE.JOBS.scheduler", ""),
    ("CONSUMER.CREATE.DECISIONS", ""),
    ("CONSUMER.CREATE.DECISIONS.x", ""),
    ("CONSUMER.DURABLE.CREATE.DECISIONS.x", ""),
    ("CONSUMER.NAMES.DECISIONS", ""),
    ("DIRECT.GET.JOBS", "operator"),
    ("DIRECT.GET.KV_jobs", ""),
    ("DIRECT.GET.KV_jobs.$KV.jobs.acme.j", "scheduler"),
    ("DIRECT.GET.KV_node_leases.$KV.node_leases.n=2E1", "node scheduler"),
    ("DIRECT.GET.KV_node_leases.$KV.node_leases.n2", "scheduler"),
    ("DIRECT.GET.DECISIONS.muxflow.decisions.n2.g", "scheduler profiler kube operator"),
    ("ACCOUNT.PURGE.x", ""),
)


class Probe:
    """One role's plain connection, and what the server said it may not do."""

    def __init__(self) -> None:
        self.client = Client()
        self.refusals: list[str] = []

    async def connect(self, server: TestServer, principal: Principal) -> None:
        settings = server.settings(principal.role, principal.bound_to)

        async def note(error: Exception) -> None:
            self.refusals.append(str(error))

        await self.client.connect(
            server.url, nkeys_seed=settings.credentials, inbox_prefix=settings.inbox_prefix, error_cb=note
        )

    async def forbidden(self) -> set[str]:
        """Subjects refused since the last time, in lower case as the client library reports them."""
        for _ in range(2):  # the client's first PING overtakes what it has not written yet
            await self.client.flush()
        said, self.refusals = self.refusals, []
        return {text.split('"')[1] for text in said if "permissions violation" in text}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server() -> AsyncIterator[TestServer]:
    async with running_server(principals=PRINCIPALS.values()) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=sorted(PRINCIPALS))
async def probe(request: pytest.FixtureRequest, server: TestServer) -> AsyncIterator[tuple[str, Probe]]:
    probe = Probe()
    await probe.connect(server, PRINCIPALS[request.param])
    yield request.param, probe
    await probe.client.close()


async def _allowed_publishes(probe: Probe, subjects: list[str]) -> set[str]:
    for subject in subjects:
        await probe.client.publish(subject, b"not an event")
    refused = await probe.forbidden()
    return {subject for subject in subjects if subject.lower() not in refused}


async def _allowed_subscriptions(probe: Probe, subjects: list[str]) -> set[str]:
    subscriptions = [await probe.client.subscribe(subject) for subject in subjects]
    refused = await probe.forbidden()
    for subscription in subscriptions:
        await subscription.unsubscribe()
    return {subject for subject in subjects if subject.lower() not in refused}


async def test_a_role_publishes_its_own_subjects_and_no_other(probe: tuple[str, Probe]) -> None:
    role, connection = probe
    rows = OWN + OTHERS
    allowed = await _allowed_publishes(connection, [subject for subject, _, _ in rows])
    assert allowed == {subject for subject, publishers, _ in rows if role in publishers.split()}


async def test_a_role_reads_its_own_subjects_and_no_other(probe: tuple[str, Probe]) -> None:
    role, connection = probe
    rows = OWN + OTHERS
    allowed = await _allowed_subscriptions(connection, [subject for subject, _, _ in rows])
    assert allowed == {subject for subject, _, readers in rows if role in readers.split()}


async def test_no_role_reads_more_than_its_rows_through_a_wildcard(probe: tuple[str, Probe]) -> None:
    assert await _allowed_subscriptions(probe[1], list(WIDE)) == set()


async def test_a_role_reads_its_own_inbox_and_nobody_elses(probe: tuple[str, Probe]) -> None:
    role, connection = probe
    inboxes = {name: f"{principal.inbox_prefix}.x" for name, principal in PRINCIPALS.items()}
    inboxes["another node"] = "_INBOX_node_n2.x"
    inboxes["another user"] = "_INBOX_user_other.x"
    allowed = await _allowed_subscriptions(connection, [*inboxes.values(), "_INBOX.x"])
    assert allowed == {inboxes[role]}


async def test_only_the_services_that_answer_questions_are_discoverable(probe: tuple[str, Probe]) -> None:
    role, connection = probe
    allowed = await _allowed_subscriptions(connection, ["$SRV.PING", "$SRV.INFO.muxflow-scheduler"])
    assert bool(allowed) == (role in {"scheduler", "predictor", "node"})


async def test_only_its_service_pulls_from_a_durable(probe: tuple[str, Probe]) -> None:
    role, connection = probe
    subjects = {f"$JS.API.CONSUMER.MSG.NEXT.{durable}": who for durable, who in DURABLES}
    for subject in subjects:
        await connection.client.publish(subject, b'{"batch":1,"no_wait":true}', reply=f"{_inbox(role)}.pull")
    refused = await connection.forbidden()
    allowed = {subject for subject in subjects if subject.lower() not in refused}
    everything = set(subjects) if role == "provisioner" else set()
    assert allowed == {subject for subject, who in subjects.items() if role in who.split()} | everything


async def test_a_consumer_can_be_made_only_with_a_filter_of_ones_own(probe: tuple[str, Probe]) -> None:
    role, connection = probe
    made = []
    for index, (stream, pattern, _) in enumerate(CONSUMERS):
        subject = f"$JS.API.CONSUMER.CREATE.{stream}.{role}{index}.{pattern}"
        if await _makes_consumer(connection, stream, subject, f"{role}{index}", pattern):
            made.append((stream, pattern))
    may = [(stream, pattern) for stream, pattern, who in CONSUMERS if role in f"{who} provisioner".split()]
    assert made == may


async def test_administration_is_the_provisioners(probe: tuple[str, Probe]) -> None:
    role, connection = probe
    if role == "provisioner":
        pytest.skip("allowed everything of this, and would do it")
    # Without a reply the server does nothing; permissions are checked all the same.
    subjects = {f"$JS.API.{verb}": who for verb, who in ADMINISTRATION}
    for subject in subjects:
        await connection.client.publish(subject, b"{" if ".STREAM.PURGE." in subject else b"not a request")
    refused = await connection.forbidden()
    allowed = {subject for subject in subjects if subject.lower() not in refused}
    assert allowed == {subject for subject, who in subjects.items() if role in who.split()}


@pytest.mark.parametrize(
    ("subject_filter", "payload"),
    [
        ("muxflow.decisions.n=2E1.*", {"filter_subject": "muxflow.decisions.n2.*"}),
        ("muxflow.decisions.n=2E1.*", {"filter_subject": "muxflow.decisions.>"}),
        ("muxflow.decisions.n=2E1.*", {}),
        ("muxflow.decisions.n=2E1.*", {"filter_subjects": ["muxflow.decisions.n2.*"]}),
        (
            "muxflow.decisions.n=2E1.*",
            {"filter_subject": "muxflow.decisions.n=2E1.*", "filter_subjects": ["muxflow.decisions.>"]},
        ),
    ],
)
async def test_the_server_refuses_a_payload_with_another_filter_than_the_subject(
    server: TestServer, subject_filter: str, payload: dict[str, Any]
) -> None:
    probe = Probe()
    await probe.connect(server, PRINCIPALS["node"])
    config = {"name": "sly", "ack_policy": "none", **payload}
    answer = await _ask(
        probe, f"CONSUMER.CREATE.DECISIONS.sly.{subject_filter}", {"stream_name": "DECISIONS", "config": config}
    )
    await probe.client.close()
    assert "error" in answer


async def test_the_name_in_the_payload_does_not_reach_another_consumer(server: TestServer) -> None:
    node, owner = Probe(), Probe()
    await node.connect(server, PRINCIPALS["node"])
    await owner.connect(server, PRINCIPALS["provisioner"])
    theirs = {"name": "theirs", "durable_name": "theirs", "ack_policy": "explicit"}
    await _ask(
        owner,
        "CONSUMER.CREATE.DECISIONS.theirs.muxflow.decisions.n2.*",
        {"stream_name": "DECISIONS", "config": {**theirs, "filter_subject": "muxflow.decisions.n2.*"}},
    )
    await _ask(
        node,
        "CONSUMER.CREATE.DECISIONS.mine.muxflow.decisions.n=2E1.*",
        {
            "stream_name": "DECISIONS",
            "config": {"name": "theirs", "ack_policy": "none", "filter_subject": "muxflow.decisions.n=2E1.*"},
        },
    )
    info = await _ask(owner, "CONSUMER.INFO.DECISIONS.theirs", {})
    await _ask(owner, "CONSUMER.DELETE.DECISIONS.theirs", {})
    await node.client.close()
    await owner.client.close()
    assert info["config"]["filter_subject"] == "muxflow.decisions.n2.*"


@pytest.mark.parametrize("role", sorted(set(PRINCIPALS) - {"provisioner", "operator"}))
async def test_no_role_can_take_over_or_change_the_durable_of_a_service(server: TestServer, role: str) -> None:
    probe, owner = Probe(), Probe()
    await probe.connect(server, PRINCIPALS[role])
    await owner.connect(server, PRINCIPALS["provisioner"])
    before = (await _ask(owner, "CONSUMER.INFO.JOBS.scheduler", {}))["config"]
    hijack = {"name": "scheduler", "durable_name": "scheduler", "ack_policy": "explicit", "ack_wait": 1_000_000_000}
    for tail, config in (
        ("CREATE.JOBS.scheduler", hijack),
        (
            "CREATE.JOBS.scheduler.muxflow.jobs.submit.acme.*",
            {**hijack, "filter_subject": "muxflow.jobs.submit.acme.*"},
        ),
        ("CREATE.JOBS.scheduler.muxflow.jobs.finished.*.*", {**hijack, "filter_subject": "muxflow.jobs.finished.*.*"}),
        ("DURABLE.CREATE.JOBS.scheduler", hijack),
    ):
        subject = f"$JS.API.CONSUMER.{tail}"
        await probe.client.publish(subject, json.dumps({"stream_name": "JOBS", "config": config}).encode())
        assert subject.lower() in await probe.forbidden()
    after = (await _ask(owner, "CONSUMER.INFO.JOBS.scheduler", {}))["config"]
    await probe.client.close()
    await owner.client.close()
    assert after == before


async def test_a_stranger_is_not_let_in(server: TestServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.process.port)
    writer.write(b"CONNECT {}\r\nPING\r\n")
    said = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    assert b"Authorization Violation" in said
    assert b"PONG" not in said


def _inbox(role: str) -> str:
    return PRINCIPALS[role].inbox_prefix


async def _makes_consumer(probe: Probe, stream: str, subject: str, name: str, pattern: str) -> bool:
    config = {"name": name, "ack_policy": "none", "filter_subject": pattern, "inactive_threshold": 1_000_000_000}
    request = json.dumps({"stream_name": stream, "config": config}).encode()
    answer: asyncio.Task[Any] = asyncio.create_task(probe.client.request(subject, request, timeout=5))
    await asyncio.sleep(0)
    if subject.lower() in await probe.forbidden():
        answer.cancel()
        return False
    made: dict[str, Any] = json.loads((await answer).data)
    assert made.get("config", {}).get("filter_subject") == pattern, made
    return True


async def _ask(probe: Probe, verb: str, request: dict[str, Any]) -> dict[str, Any]:
    try:
        answer = await probe.client.request(f"$JS.API.{verb}", json.dumps(request).encode(), timeout=5)
    except NatsTimeout:
        raise AssertionError(f"no answer to {verb}: {probe.refusals}") from None
    parsed: dict[str, Any] = json.loads(answer.data)
    return parsed
