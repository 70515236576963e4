"""The executor as a process, on a real server; decisions come from the test, in the scheduler's place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executing_node import alive, python, slot_of, until
from muxflow.bus import Bus, Message, QueryError
from muxflow.bus.credentials import Principal
from muxflow.contracts import (
    GpuDecision,
    LogsQuery,
    NodeLease,
    NodeState,
    Role,
    RunEvent,
    RunEvicted,
    RunExited,
    RunStarted,
    Slot,
    StopCause,
)
from muxflow.contracts.catalogue import (
    BUCKET_NODE_LEASES,
    DECISIONS,
    NODES_STATE,
    QUERY_LOGS,
    RUNS_CHECKPOINTED,
    RUNS_EVICTED,
    RUNS_EXITED,
    RUNS_STARTED,
)
from muxflow_device.rundir import RunDirectory
from muxflow_simgpu import SimulatedMachine
from world import Service, World

NODE = "node.a"
GPU = f"GPU-{NODE}-0"


class Decider:
    """Decides for one GPU as the scheduler would, and hears what the executor tells."""

    def __init__(self, world: World, bus: Bus) -> None:
        self.world = world
        self.bus = bus
        self.facts: list[RunEvent] = []
        self._generation = 0
        self._heard = asyncio.Condition()
        self._leases = bus.kv(BUCKET_NODE_LEASES)

    async def listen(self, ears: Bus) -> None:
        await ears.read([RUNS_STARTED, RUNS_CHECKPOINTED, RUNS_EVICTED, RUNS_EXITED], self._hear, start="all")

    async def _hear(self, message: Message[Any]) -> None:
        async with self._heard:
            self.facts.append(message.event)
            self._heard.notify_all()

    async def fact(self, kind: type[RunEvent], job: str = "job") -> Any:
        async with self._heard, asyncio.timeout(20):
            while True:
                for event in self.facts:
                    if isinstance(event, kind) and event.job == job:
                        return event
                await self._heard.wait()

    async def lease(self) -> NodeLease | None:
        entry = await self._leases.get(self._leases.key(node=NODE))
        return entry.value if entry is not None else None

    async def session(self, *, after: str = "") -> str:
        async with asyncio.timeout(20):
            while (lease := await self.lease()) is None or lease.session == after:
                await asyncio.sleep(0.02)
            return lease.session

    async def decide(self, *slots: Slot, withdrawn: tuple[Slot, ...] = (), session: str | None = None) -> None:
        self._generation += 1
        decision = GpuDecision(
            node=NODE,
            gpu=GPU,
            term=1,
            generation=self._generation,
            session=session if session is not None else await self.session(),
            slots=slots,
            withdrawn=tuple(slot.key for slot in withdrawn),
            cause="the test wants it so",
        )
        await self.bus.publish(DECISIONS, decision, node=NODE, gpu=GPU)

    async def take_lease_away(self) -> None:
        """As a scheduler that declares the node lost."""
        key = self._leases.key(node=NODE)
        entry = await self._leases.get(key)
        assert entry is not None
        await self._leases.delete(key)

    def executor(self) -> Service:
        return self.world.services[NODE]

    def attempts(self) -> list[str]:
        return sorted(path.name for path in (self.world.state_dir(NODE) / "attempts").iterdir())


async def end(service: Service, number: signal.Signals) -> None:
    """Signal it and wait, while its way to the server, which leads through this event loop, stays open."""
    await asyncio.to_thread(service.kill, number)


@pytest.fixture
async def decider(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Decider]:
    """A node with a lease of T = 2 s, or of as many seconds as the test asks for."""
    lease_s = getattr(request, "param", 2)
    world = World(tmp_path, nodes={NODE: 1}, env={"MUXFLOW_LEASE__NODE_S": str(lease_s)})
    try:
        await world.start_servers()
        scheduler, operator = Principal(role=Role.SCHEDULER), Principal(role=Role.OPERATOR)
        async with await world.connect(scheduler) as bus, await world.connect(operator) as ears:
            decider = Decider(world, bus)
            await decider.listen(ears)
            await world.add_executor(NODE)
            yield decider
    finally:
        for service in world.services.values():
            await end(service, signal.SIGINT)
        await world.stop()
        for pid in world.shims(NODE):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def test_decided_slot_runs_and_its_end_is_told_and_forgotten(decider: Decider) -> None:
    await decider.decide(slot_of("sh", "-c", "echo hello; exit 3"))
    started = await decider.fact(RunStarted)
    exited = await decider.fact(RunExited)
    assert (started.node, started.gpu, exited.exit.code) == (NODE, GPU, 3)
    assert ".node=2Ea.default.job.1." in exited.id
    assert decider.attempts() == ["default.job.1"]
    await decider.decide()
    await until(lambda: decider.attempts() == [])


async def test_slot_that_is_no_longer_decided_is_stopped(decider: Decider) -> None:
    await decider.decide(slot_of("sleep", "1000"))
    await decider.fact(RunStarted)
    await decider.decide()
    assert (await decider.fact(RunEvicted)).cause is StopCause.DECISION
    assert (await decider.fact(RunExited)).exit.stopped_by is StopCause.DECISION


async def test_withdrawn_attempt_that_was_never_seen_is_answered_for(decider: Decider) -> None:
    await decider.decide(withdrawn=(slot_of("true"),))
    exited = await decider.fact(RunExited)
    assert (exited.exit.stopped_by, exited.started_ns) == (StopCause.DECISION, 0)


async def test_nothing_starts_from_a_decision_of_another_session(decider: Decider) -> None:
    await decider.decide(slot_of("true", job="stale"), session="another")
    await decider.decide(slot_of("true", job="fresh"))
    await decider.fact(RunExited, "fresh")
    assert {event.job for event in decider.facts} == {"fresh"}


async def test_node_tells_what_it_offers(decider: Decider) -> None:
    await decider.session()
    async with asyncio.timeout(10):
        while (told := await decider.bus.last(NODES_STATE, node=NODE)) is None:
            await asyncio.sleep(0.02)
    state: NodeState = told.event
    assert [(gpu.uuid, gpu.kind, gpu.memory_bytes) for gpu in state.gpus] == [(GPU, "T4", 16 * 2**30)]
    assert not state.draining


@pytest.mark.parametrize("decider", [10], indirect=True, ids=["T=10s"])  # outlasts a start on a busy machine
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_jobs_run_on_while_the_executor_is_restarted(decider: Decider, number: signal.Signals) -> None:
    session = await decider.session()
    await decider.decide(slot_of("sleep", "1000"))
    pid = (await decider.fact(RunStarted)).pid
    await end(decider.executor(), number)
    decider.executor().start()
    assert alive(pid)
    await decider.decide()
    assert (await decider.fact(RunExited)).exit.stopped_by is StopCause.DECISION
    assert await decider.session() == session


async def test_sigint_stops_the_jobs_and_gives_the_lease_back(decider: Decider) -> None:
    await decider.decide(slot_of("sleep", "1000"))
    await decider.fact(RunStarted)
    await end(decider.executor(), signal.SIGINT)
    assert (await decider.fact(RunExited)).exit.stopped_by is StopCause.SHUTDOWN
    assert await decider.lease() is None
    assert decider.world.shims(NODE) == []


async def test_lease_that_was_taken_away_stops_everything_before_a_new_session_begins(decider: Decider) -> None:
    session = await decider.session()
    await decider.decide(slot_of("sh", "-c", 'trap "" TERM; while :; do sleep 0.02; done'))
    pid = (await decider.fact(RunStarted)).pid
    await decider.take_lease_away()
    new = await decider.session(after=session)
    assert not alive(pid)
    assert (await decider.fact(RunExited)).exit.stopped_by is StopCause.LEASE
    await decider.decide(slot_of("true", job="next"), session=new)
    assert (await decider.fact(RunExited, "next")).exit.succeeded


async def test_jobs_end_with_the_lease_when_the_bus_stays_away(decider: Decider) -> None:
    session = await decider.session()
    await decider.decide(slot_of("sleep", "1000"))
    pid = (await decider.fact(RunStarted)).pid
    cut = time.monotonic()
    await decider.world.servers[0].kill()
    await until(lambda: not alive(pid), 10)
    assert 1.0 < time.monotonic() - cut < 2 + 0.5 + 1.5
    await decider.world.servers[0].start()
    assert (await decider.fact(RunExited)).exit.stopped_by is StopCause.LEASE
    assert await decider.session(after=session) != session


async def test_node_that_another_has_held_is_taken_over_only_after_grace_and_margin(decider: Decider) -> None:
    await decider.session()
    await end(decider.executor(), signal.SIGKILL)
    leases = decider.bus.kv(BUCKET_NODE_LEASES)
    key = leases.key(node=NODE)
    value = await decider.lease()
    await leases.delete(key)
    assert value is not None
    await leases.create(key, msgspec.structs.replace(value, session="of another"))
    decider.executor().start()
    async with asyncio.timeout(20):
        while "another executor holds" not in decider.executor().log.read_text():
            await asyncio.sleep(0.02)
    await leases.delete(key)
    gone = time.monotonic()
    await decider.session()
    assert time.monotonic() - gone > 0.5 + 0.5 - 0.3  # grace, margin, and how long ago it last looked


async def test_exit_while_the_bus_is_away_is_told_when_it_is_back(decider: Decider, tmp_path: Path) -> None:
    await decider.decide(slot_of("sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; exit 5"))
    await decider.fact(RunStarted)
    await decider.world.servers[0].kill()
    (tmp_path / "go").touch()
    await until((decider.world.state_dir(NODE) / "attempts" / "default.job.1" / "exit.json").exists)
    await decider.world.servers[0].start()
    assert (await decider.fact(RunExited)).exit.code == 5


async def test_logs_are_answered_to_the_tenant_while_running_and_afterwards(decider: Decider) -> None:
    await decider.decide(slot_of(*python("print('line', flush=True); import time; time.sleep(1000)")))
    await decider.fact(RunStarted)
    user = await decider.world.connect(Principal(role=Role.USER, bound_to="default"))
    async with user:

        async def logs(job: str = "job", **query: Any) -> Any:
            return await user.request(QUERY_LOGS, LogsQuery(job=job, **query), timeout_s=5, tenant="default", node=NODE)

        async with asyncio.timeout(10):
            while not (piece := await logs()).data:
                await asyncio.sleep(0.02)
        assert (piece.data, piece.attempt, piece.offset, piece.end, piece.running) == (b"line\n", 1, 0, 5, True)
        await decider.decide()
        await decider.fact(RunExited)
        await until(lambda: decider.attempts() == [])
        after = await logs(offset=2)
        assert (after.data, after.running) == (b"ne\n", False)
        with pytest.raises(QueryError, match="no output of job 'other'") as refused:
            await logs("other")
        assert refused.value.code == 404


async def test_logs_of_a_tenant_are_not_given_to_another(decider: Decider) -> None:
    await decider.decide(slot_of("echo", "secret"))
    await decider.fact(RunExited)
    async with await decider.world.connect(Principal(role=Role.OPERATOR)) as operator:
        query = LogsQuery(job="job")
        with pytest.raises(QueryError):
            await operator.request(QUERY_LOGS, query, timeout_s=5, tenant="other", node=NODE)
        reply = await operator.request(QUERY_LOGS, query, timeout_s=5, tenant="_all", node=NODE)
        assert reply.data == b"secret\n"


async def test_second_executor_on_one_state_directory_says_so_in_one_line(decider: Decider, tmp_path: Path) -> None:
    await decider.session()
    second = Service("second", "muxflow_executor", decider.executor()._env, tmp_path / "second.log")
    second.start()
    await until(lambda: not second.running)
    lines = [line for line in second.log.read_text().splitlines() if '"error"' in line]
    assert len(lines) == 1
    assert "in use by another executor" in lines[0]


async def test_bad_inventory_is_one_line_that_names_file_and_field(decider: Decider) -> None:
    await end(decider.executor(), signal.SIGKILL)
    inventory = decider.world.root / f"{NODE}-inventory.toml"
    inventory.write_text('[[gpu]]\nuuid = "GPU-1"\nkind = "T4"\nmemory = "16"\n')
    decider.executor().start()
    await until(lambda: not decider.executor().running)
    lines = [line for line in decider.executor().log.read_text().splitlines() if "cannot start" in line]
    assert len(lines) == 1
    assert f"{inventory}: gpu[0].memory" in lines[0]
    inventory.unlink()


async def test_state_directory_that_cannot_be_used_is_one_line_that_names_it(decider: Decider, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = {**decider.executor()._env, "MUXFLOW_EXECUTOR__STATE_DIR": str(tmp_path / "file" / "state")}
    service = Service("unlucky", "muxflow_executor", env, tmp_path / "unlucky.log")
    service.start()
    await until(lambda: not service.running)
    lines = [line for line in service.log.read_text().splitlines() if '"error"' in line]
    assert len(lines) == 1
    assert f"{tmp_path}/file/state" in lines[0]
    assert "Not a directory" in lines[0]


async def test_node_without_gpus_says_in_one_line_how_to_declare_them(
    decider: Decider, tmp_path: Path, run: RunDirectory
) -> None:
    env = {**decider.executor()._env, **SimulatedMachine(tmp_path / "no-gpus").environment()}
    env |= {"MUXFLOW_EXECUTOR__STATE_DIR": str(tmp_path / "state"), "MUXFLOW_EXECUTOR__RUN_DIR": str(run.path)}
    del env["MUXFLOW_EXECUTOR__INVENTORY"]
    service = Service("blind", "muxflow_executor", env, tmp_path / "blind.log")
    service.start()
    await until(lambda: not service.running)
    lines = [line for line in service.log.read_text().splitlines() if '"error"' in line]
    assert len(lines) == 1
    assert "NVML" in lines[0]
    assert "executor.inventory names a file" in lines[0]


async def test_run_directory_that_others_could_write_to_is_one_line_that_names_it(
    decider: Decider, tmp_path: Path, run: RunDirectory
) -> None:
    run.path.chmod(0o777)
    with SimulatedMachine(tmp_path / "gpus") as simulated:
        simulated.start("T4")
        env = {**decider.executor()._env, **simulated.environment()}
        env |= {"MUXFLOW_EXECUTOR__STATE_DIR": str(tmp_path / "state"), "MUXFLOW_EXECUTOR__RUN_DIR": str(run.path)}
        del env["MUXFLOW_EXECUTOR__INVENTORY"]
        service = Service("open", "muxflow_executor", env, tmp_path / "open.log")
        service.start()
        await until(lambda: not service.running)
    lines = [line for line in service.log.read_text().splitlines() if '"error"' in line]
    assert len(lines) == 1
    assert f"executor.run_dir {run.path}" in lines[0]
