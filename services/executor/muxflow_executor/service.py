"""The executor: makes one node's GPUs run what was decided, and tells how it went."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
from pathlib import Path
from typing import Final

from muxflow import state_lock
from muxflow.bus import Bus, BusError, Message, Outbox, Reader
from muxflow.contracts import (
    Attempt,
    Gpu,
    GpuDecision,
    NodeState,
    RunCheckpointed,
    RunEvent,
    RunEvicted,
    RunExited,
    RunStarted,
    StopCause,
    Subject,
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
from muxflow.health import Health
from muxflow.inventory import InventoryError, load
from muxflow.service import CannotStart, Service
from muxflow_decisions.lease import LeaseTerms
from muxflow_decisions.node import Decline, Forget, NodeInstruction, Start, Stop, reconcile
from muxflow_device.eviction import EvictionServer, EvictOrder
from muxflow_device.inventory import discover
from muxflow_device.nvml import NvmlUnavailable
from muxflow_device.rundir import RunDirectory
from muxflow_executor import cgroups
from muxflow_executor.answers import Answers
from muxflow_executor.attempts import AttemptStore
from muxflow_executor.desired import Desired
from muxflow_executor.evictions import Evictions
from muxflow_executor.launch import RunnerSettings
from muxflow_executor.metrics import ExecutorMetrics
from muxflow_executor.node_lease import NodeLease
from muxflow_executor.process_runner import ProcessRunner
from muxflow_executor.protection import Protection
from muxflow_executor.settings import ExecutorSection, ExecutorSettings, ladder_policy
from muxflow_executor.shim.records import boot_id

_SUBJECTS: Final[dict[type[RunEvent], Subject]] = {
    RunStarted: RUNS_STARTED,
    RunCheckpointed: RUNS_CHECKPOINTED,
    RunEvicted: RUNS_EVICTED,
    RunExited: RUNS_EXITED,
}
_SECOND_NS: Final = 1_000_000_000
_RETRY_S: Final = 1.0
_DELIVER_S: Final = 5.0
_LOOK_S: Final = 0.02
_PRUNE_EVERY_S: Final = 600.0


class Executor(Service[ExecutorSettings]):
    """Runs offline jobs on this node's GPUs, as decided by the scheduler.

    SIGINT stops them. SIGTERM leaves them to the next executor, unless executor.drain_on_stop is set.
    """

    name = "executor"
    needs_bus = False

    def __init__(self, settings: ExecutorSettings, bus: Bus, health: Health) -> None:
        super().__init__(settings, bus, health)
        section, leases = settings.executor, settings.lease
        self._node = section.node
        self._state_dir = Path(section.state_dir)
        self._terms = LeaseTerms(
            duration_ns=int(leases.node_s * _SECOND_NS),
            grace_ns=max(1, int(leases.node_grace_s * _SECOND_NS)),
            margin_ns=int(leases.node_margin_s * _SECOND_NS),
        )
        self._metrics = ExecutorMetrics(self.registry)
        self._wake = asyncio.Event()
        self._lease_known = asyncio.Event()
        """Set once it is known whether the last executor's lease session goes on: before that, nothing is stopped."""
        self._draining = False
        self._exits: dict[str, Attempt] = {}
        self._reader: Reader | None = None
        self._opened = False
        self._run = RunDirectory(Path(section.run_dir)) if section.run_dir is not None else RunDirectory.default()
        self._protection = Protection(self._run) if section.inventory is None else None
        self._socket: EvictionServer | None = None

    async def start(self) -> None:
        """Take over what runs here and obey the evictor; then, as soon as the bus is there, take the lease and obey."""
        self._gpus = await asyncio.to_thread(_gpus, self.settings.executor)
        if self._protection is not None:
            try:
                await asyncio.to_thread(self._protection.open)
            except OSError as error:
                raise CannotStart(f"executor.run_dir {self._run.path}: {error}") from None
        try:
            self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = state_lock.hold(self._state_dir, self.name)
            self._cgroup = await asyncio.to_thread(cgroups.attempts_cgroup, self._state_dir)
            self._store = AttemptStore(self._state_dir)
            self._runner = ProcessRunner(
                self._store,
                self._runner_settings(),
                protection=self._protection,
                on_change=self._wake.set,
                on_step=lambda step: self._metrics.steps.labels(step.value).inc(),
                on_failure=self.fail,
            )
            await self._runner.open()
            self._outbox = Outbox(self._state_dir / "outbox.db", source=self.bus.source)
            await self._outbox.open()
        except (OSError, sqlite3.Error) as error:
            raise CannotStart(f"executor.state_dir {self._state_dir}: {error}") from None
        self._lease = NodeLease(
            self.bus.kv(BUCKET_NODE_LEASES), node=self._node, state_dir=self._state_dir, terms=self._terms
        )
        self._desired = Desired((gpu.uuid for gpu in self._gpus), self._state_dir / "obeyed.json")
        self._metrics.observe(self._runner, self._lease)
        self.health.require("lease", lambda: None if self._lease.session else "the node's lease is not held")
        self._outbox.on_delivered(self._delivered)
        self._outbox.drain_to(self.bus, on_failure=self.fail)
        self._opened = True
        self.spawn(self._store_facts(), name="facts")
        if self._protection is not None:
            await self._open_socket()
        self.spawn(self._obey(), name="obey")
        self._leasing = self.spawn(self._hold_lease(), name="lease")
        self.spawn(self._prune(), name="prune")
        answers = Answers(self._store, self._runner)
        await self.bus.serve("muxflow-executor", "1.0.0", {QUERY_LOGS: answers.logs}, bindings={"node": self._node})

    async def stop(self, received: signal.Signals) -> None:
        """Leave the jobs to the next executor, or stop them and wait until nothing is left."""
        if not self._opened:
            return
        if received == signal.SIGINT or self.settings.executor.drain_on_stop:
            await self._drain()
        if self._socket is not None:  # not before: the evictor may want it to be quicker
            await self._socket.close()
        await self._runner.close()
        await self._outbox.close()
        cgroups.leave(self._cgroup)
        if self._protection is not None:
            self._protection.close()
        self._lock.close()

    async def _open_socket(self) -> None:
        evictions = Evictions(self._store, self._runner, gpus=(gpu.uuid for gpu in self._gpus), stop=self._evict)
        try:
            self._socket = EvictionServer(self._run.executor_socket, evictions.carry_out)
            await self._socket.open()
        except (OSError, ValueError) as error:
            raise CannotStart(f"executor.run_dir {self._run.path}: {error}") from None

    async def _drain(self) -> None:
        self.log.info("draining", attempts=len(self._runner.runs))
        self._draining = True
        if self._lease.session is not None:
            self.spawn(self._publish_state(), name="node-state")
        self._wake.set()
        for attempt in self._runner.runs:
            self._runner.stop(attempt, StopCause.SHUTDOWN, "the executor is shutting down")
        await self._runner.all_ended()
        self._leasing.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DELIVER_S):
                await self._runner.facts.join()
                for event_id in tuple(self._exits):
                    await self._outbox.delivered(event_id)
        if self.bus.connected:
            await self._lease.release()

    # --- the lease, and what is decided under it

    async def _hold_lease(self) -> None:
        resumed = await self._lease.resume()
        self._lease_known.set()
        while True:
            if not resumed:
                self._wake.set()
                await self._end_everything()
                await self._facts_delivered()
                await self._lease.begin()
            session = self._lease.session
            if session is None:
                resumed = False
                continue
            self.log.info("lease held", session=session, resumed=resumed)
            await self._read_decisions(session)
            publishing = self.spawn(self._publish_state(), name="node-state")
            self._wake.set()
            reason = await self._lease.keep()
            publishing.cancel()
            self.log.error("lease lost", session=session, reason=reason)
            self._metrics.leases_lost.inc()
            resumed = False

    async def _end_everything(self) -> None:
        """Without a lease nothing may run: stop it all, and wait until nothing is left."""
        for attempt in self._runner.runs:
            self._stop(attempt, StopCause.LEASE, "the node's lease is lost")
        await self._runner.all_ended()

    async def _facts_delivered(self) -> None:
        """Let the ends of the last session be known before a new one is: else what had succeeded would run again.

        Bounded while connected, so that a fact which disk or bus do not take keeps no node away.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DELIVER_S):
                await self._runner.facts.join()
        left_s = _DELIVER_S
        while self._outbox.pending and left_s > 0:
            await asyncio.sleep(_LOOK_S)
            left_s -= _LOOK_S if self.bus.connected else 0

    async def _read_decisions(self, session: str) -> None:
        if self._reader is not None:
            await self._reader.stop()
        self._desired.begin(session)
        self._reader = await self.bus.read(DECISIONS, self._decided, start="last", bindings={"node": self._node})

    async def _decided(self, message: Message[GpuDecision]) -> None:
        decision = message.event
        if decision.gpu != message.names["gpu"] or decision.node != self._node:
            self.log.error("decision does not belong on its subject", subject=message.address, gpu=decision.gpu)
            return
        if self._desired.take(decision):
            self._wake.set()
            await self._save_obeyed()

    async def _save_obeyed(self) -> None:
        try:
            await asyncio.to_thread(self._desired.save)
        except OSError as error:
            self.log.warning("cannot note which decision is obeyed", error=str(error))

    async def _obey(self) -> None:
        """Make the node be as decided, whenever something has changed."""
        await self._lease_known.wait()
        while True:
            await self._wake.wait()
            self._wake.clear()
            for instruction in reconcile(
                self._desired.decisions, self._runner.local, session=self._lease.session, draining=self._draining
            ):
                self._follow(instruction)

    def _follow(self, instruction: NodeInstruction) -> None:
        match instruction:
            case Start(gpu=gpu, slot=slot):
                self.log.info("starting", attempt=str(slot.key), gpu=gpu)
                self._metrics.starts.inc()
                self._runner.start(slot, gpu)
            case Stop(attempt=attempt, cause=cause, reason=reason):
                self._stop(attempt, cause, reason)
            case Decline(attempt=attempt, gpu=gpu, cause=cause, reason=reason):
                self.log.info("declining", attempt=str(attempt), reason=reason)
                self._runner.decline(attempt, gpu, cause, reason)
            case Forget(attempt=attempt):
                self._runner.forget(attempt)

    def _evict(self, attempt: Attempt, order: EvictOrder) -> None:
        cause = StopCause.BREACH if order.breach else StopCause.EVICTION
        self._stop(attempt, cause, order.cause, hard=order.hard)

    def _stop(self, attempt: Attempt, cause: StopCause, reason: str, *, hard: bool = False) -> None:
        if self._runner.stop(attempt, cause, reason, hard=hard):
            self.log.info("stopping", attempt=str(attempt), cause=cause.value, reason=reason)
            self._metrics.stops.labels(cause.value).inc()

    # --- telling

    async def _publish_state(self) -> None:
        state = NodeState(
            node=self._node,
            boot_id=boot_id(),
            gpus=self._gpus,
            labels=self.settings.executor.labels,
            watched=self._protection is not None,
            draining=self._draining,
        )
        while True:
            try:
                await self.bus.publish(NODES_STATE, state, node=self._node)
                return
            except BusError as error:
                self.log.error("cannot tell what the node offers", error=str(error))  # noqa: TRY400
                await asyncio.sleep(10 * _RETRY_S)

    async def _store_facts(self) -> None:
        """Put facts into the outbox, in order; from there they reach the bus whenever it is there."""
        while True:
            fact = await self._runner.facts.get()
            if isinstance(fact, RunExited):
                self._exits[fact.id] = Attempt(tenant=fact.tenant, job=fact.job, attempt=fact.attempt)
                self._metrics.exits.labels(_outcome(fact)).inc()
            await self._store_fact(fact)
            self._runner.facts.task_done()

    async def _store_fact(self, fact: RunEvent) -> None:
        complaint = ""
        while True:
            try:
                await self._outbox.put(_SUBJECTS[type(fact)], fact, node=self._node, tenant=fact.tenant, job=fact.job)
                return
            except (BusError, sqlite3.Error, OSError) as error:
                if str(error) != complaint:
                    complaint = str(error)
                    self.log.error("cannot store a fact, trying again", id=fact.id, error=complaint)  # noqa: TRY400
                await asyncio.sleep(_RETRY_S)

    def _delivered(self, event_id: str) -> None:
        attempt = self._exits.pop(event_id, None)
        if attempt is not None:
            self._runner.mark_reported(attempt)

    async def _prune(self) -> None:
        section = self.settings.executor
        while True:
            try:
                await asyncio.to_thread(
                    self._store.prune,
                    outputs=section.kept_outputs,
                    output_bytes=section.kept_output_bytes,
                    checkpoint_age_s=section.kept_checkpoints_s,
                )
            except OSError as error:
                self.log.warning("cannot drop old output", error=str(error))
            await asyncio.sleep(_PRUNE_EVERY_S)

    def _runner_settings(self) -> RunnerSettings:
        section, leases = self.settings.executor, self.settings.lease
        return RunnerSettings(
            node=self._node,
            state_dir=self._state_dir.resolve(),
            secrets_dir=Path(section.secrets_dir) if section.secrets_dir is not None else None,
            cgroup=self._cgroup,
            lease_s=leases.node_s,
            lease_grace_s=leases.node_grace_s,
            log_bytes=section.log_bytes,
            ladder=ladder_policy(self.settings),
            nice=section.nice,
        )


def _gpus(section: ExecutorSection) -> tuple[Gpu, ...]:
    """Find the GPUs of this node, or read which are declared. Raises `CannotStart`."""
    if section.inventory is not None:
        try:
            return load(Path(section.inventory))
        except InventoryError as error:
            raise CannotStart(str(error)) from None
    try:
        found = discover()
    except NvmlUnavailable as error:
        raise CannotStart(f"{error}; executor.inventory names a file if GPUs are to be declared") from None
    if not found:
        raise CannotStart("NVML finds no GPU; executor.inventory names a file if GPUs are to be declared")
    return found


def _outcome(fact: RunExited) -> str:
    if fact.exit.stopped_by is not None:
        return "stopped"
    if fact.exit.lost:
        return "lost"
    return "succeeded" if fact.exit.succeeded else "failed"
