"""A node whose executor is the test itself, over the real bus: for tests of what the scheduler decides."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

from muxflow.bus import Bus, Message, WrongLastSequence
from muxflow.contracts import (
    DeviceCondition,
    DeviceState,
    ExitStatus,
    Gpu,
    GpuDecision,
    NodeLease,
    NodeState,
    OnlineState,
    RunEvicted,
    RunExited,
    RunStarted,
    Slot,
    StopCause,
)
from muxflow.contracts.catalogue import (
    BUCKET_NODE_LEASES,
    DECISIONS,
    DEVICES_STATE,
    NODES_STATE,
    ONLINE_STATE,
    RUNS_EVICTED,
    RUNS_EXITED,
    RUNS_STARTED,
)

NODE = "node.a"
GIB = 2**30


class ScriptedNode:
    """Speaks for a node: holds its lease, reads its decisions, reports what the test says.

    One that is `watched` speaks for a monitor too.
    """

    def __init__(self, bus: Bus, gpus: int, *, watched: bool = False) -> None:
        self.bus = bus
        self.gpus = [f"GPU-{number}" for number in range(gpus)]
        self.watched = watched
        self._epoch = 0
        self.session = uuid.uuid4().hex
        self.decisions: dict[str, GpuDecision] = {}
        self._changed = asyncio.Condition()
        self._leases = bus.kv(BUCKET_NODE_LEASES)
        self._revision = 0
        self._renewing: asyncio.Task[None] | None = None

    async def join(self) -> None:
        await self._take_lease()
        self._renewing = asyncio.get_running_loop().create_task(self._renew())
        gpus = tuple(
            Gpu(uuid=uuid, kind="T4", memory_bytes=16 * GIB, index=index) for index, uuid in enumerate(self.gpus)
        )
        state = NodeState(node=NODE, boot_id="boot", gpus=gpus, watched=self.watched)
        await self.bus.publish(NODES_STATE, state, node=NODE)
        await self.bus.read(DECISIONS, self._decided, start="last", bindings={"node": NODE})

    async def fall_silent(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait((self._renewing,))

    async def come_back(self) -> None:
        """As an executor does that has lost its lease and ended everything."""
        self.session = uuid.uuid4().hex
        await self._take_lease()
        self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def slot(self, job: str, attempt: int | None = None) -> tuple[str, Slot]:
        """Wait until a job is wanted on some GPU."""

        def wanted() -> tuple[str, Slot] | None:
            for gpu, decision in self.decisions.items():
                for slot in decision.slots:
                    if slot.job == job and attempt in (None, slot.attempt) and decision.session == self.session:
                        return gpu, slot
            return None

        found: tuple[str, Slot] = await self.until(wanted)
        return found

    async def withdrawn(self, job: str) -> None:
        """Wait until a job is no longer wanted anywhere."""
        await self.until(
            lambda: all(slot.job != job for each in self.decisions.values() for slot in each.slots) or None
        )

    async def until(self, look: Callable[[], Any]) -> Any:
        async with self._changed, asyncio.timeout(15):
            while (found := look()) is None:
                await self._changed.wait()
            return found

    async def started(self, gpu: str, slot: Slot) -> None:
        event = RunStarted(
            id=f"{slot.key}.started",
            node=NODE,
            gpu=gpu,
            tenant=slot.tenant,
            job=slot.job,
            attempt=slot.attempt,
            pid=1,
            boot_id="boot",
        )
        await self.bus.publish(RUNS_STARTED, event, node=NODE, tenant=slot.tenant, job=slot.job)

    async def exited(
        self, gpu: str, slot: Slot, code: int | None = 0, stopped_by: StopCause | None = None, *, times: int = 1
    ) -> None:
        for number in range(times):
            event = RunExited(
                id=f"{slot.key}.exited.{number}",
                node=NODE,
                gpu=gpu,
                tenant=slot.tenant,
                job=slot.job,
                attempt=slot.attempt,
                exit=ExitStatus(code=code, stopped_by=stopped_by),
                ended_ns=time.time_ns(),
            )
            await self.bus.publish(RUNS_EXITED, event, node=NODE, tenant=slot.tenant, job=slot.job)

    async def becomes(self, gpu: str, condition: DeviceCondition, cause: str = "", *, since_ns: int = 0) -> None:
        """Tell a state of one GPU, by default as from now on."""
        self._epoch += 1
        event = DeviceState(
            node=NODE,
            gpu=gpu,
            state=condition,
            since_ns=since_ns or time.time_ns(),
            cause=cause,
            epoch=self._epoch,
            budget_permille=800,
        )
        await self.bus.publish(DEVICES_STATE, event, node=NODE, gpu=gpu)

    async def serves(
        self,
        gpu: str,
        workload: str | None,
        activity_peak_pct: float | None,
        *,
        uncovered_peak_pct: float | None = None,
    ) -> None:
        """Tell of the online side of one GPU."""
        event = OnlineState(
            node=NODE,
            gpu=gpu,
            workload=workload,
            activity_peak_pct=activity_peak_pct,
            uncovered_peak_pct=uncovered_peak_pct,
        )
        await self.bus.publish(ONLINE_STATE, event, node=NODE, gpu=gpu)

    async def evicts(self, gpu: str, slot: Slot) -> None:
        """Begin to put a job off a GPU, and end it."""
        event = RunEvicted(
            node=NODE, gpu=gpu, tenant=slot.tenant, job=slot.job, attempt=slot.attempt, cause=StopCause.EVICTION
        )
        await self.bus.publish(RUNS_EVICTED, event, node=NODE, tenant=slot.tenant, job=slot.job)
        await self.exited(gpu, slot, code=None, stopped_by=StopCause.EVICTION)

    async def _decided(self, message: Message[GpuDecision]) -> None:
        async with self._changed:
            self.decisions[message.event.gpu] = message.event
            self._changed.notify_all()

    def _lease(self) -> NodeLease:
        return NodeLease(node=NODE, boot_id="boot", session=self.session, time_ns=time.time_ns())

    async def _take_lease(self) -> None:
        self._revision = await self._leases.create(self._leases.key(node=NODE), self._lease())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            try:
                self._revision = await self._leases.update(
                    self._leases.key(node=NODE), self._lease(), last=self._revision
                )
            except WrongLastSequence:
                return
