"""A node with a simulated GPU, and the real executor and evictor; the test is scheduler and monitor.

What is killed stays dead until the test starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from evicting_node import Monitor
from muxflow.bus import Bus, BusError, Message
from muxflow.bus.credentials import Principal
from muxflow.contracts import Event, GpuDecision, Role, RunEvent, Slot
from muxflow.contracts.catalogue import (
    ALERTS_EVICTION,
    BUCKET_NODE_LEASES,
    DECISIONS,
    RUNS_CHECKPOINTED,
    RUNS_EVICTED,
    RUNS_EXITED,
    RUNS_STARTED,
)
from muxflow.contracts.devices import EvictionAlert
from muxflow_device.rundir import RunDirectory
from muxflow_simgpu import SimulatedMachine
from world import Service, World

NODE = "node.a"
LEASE = {"MUXFLOW_LEASE__NODE_S": "20"}
"""Long enough that a busy machine does not lose it: what happens then is tested elsewhere."""


class ProtectedNode:
    """Use `protected_node`."""

    def __init__(self, root: Path, memory: Path) -> None:
        self.world = World(root, nodes={NODE: 1}, env=LEASE)
        self.run = RunDirectory(memory / "run")
        self.run.prepare()
        self.simulated = SimulatedMachine(memory / "gpus")
        (device,) = self.simulated.start("T4")
        self.gpu = device.uuid
        self.monitor = Monitor(self.run, gpu=self.gpu)
        self.events: list[Event] = []
        """Facts and alerts as they came over the bus."""
        self.bus: Bus
        self._generation = 0
        self._news = asyncio.Condition()
        self._stack = contextlib.AsyncExitStack()

    async def open(self) -> None:
        await self.world.start_servers()
        for role in (Role.SCHEDULER, Role.OPERATOR):
            bus = await self._stack.enter_async_context(await self.world.connect(Principal(role=role)))
            if role is Role.SCHEDULER:
                self.bus = bus
            else:
                facts = [RUNS_STARTED, RUNS_CHECKPOINTED, RUNS_EVICTED, RUNS_EXITED]
                await bus.read([*facts, ALERTS_EVICTION], self._hear, start="all")
        self.monitor.start()
        for name in ("executor", "evictor"):
            self.world._add(name, f"muxflow_{name}", self.env(name))

    async def close(self) -> None:
        for name, number in (("evictor", signal.SIGTERM), ("executor", signal.SIGINT)):
            with contextlib.suppress(KeyError):
                await asyncio.to_thread(self.service(name).kill, number)
        await self._stack.aclose()
        await self.monitor.close()
        await self.world.stop()
        for pid in self.world.shims("executor"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.simulated.stop()

    def env(self, name: str) -> dict[str, str]:
        section = {"NODE": NODE, "RUN_DIR": str(self.run.path), "STATE_DIR": str(self.world.state_dir(name))}
        if name == "evictor":
            section["POLICY"] = '{"evict_after_s": 0.2}'
        return {
            **self.world._bus_env(Principal(role=Role.NODE, bound_to=NODE), self.world.urls),
            **self.simulated.environment(),
            **{f"MUXFLOW_{name.upper()}__{key}": value for key, value in section.items()},
        }

    def service(self, name: str) -> Service:
        return self.world.services[name]

    async def kill(self, *names: str) -> None:
        for name in names:
            await asyncio.to_thread(self.service(name).kill)

    async def session(self) -> str:
        leases = self.bus.kv(BUCKET_NODE_LEASES)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(BusError):
                    entry = await leases.get(leases.key(node=NODE))
                    if entry is not None:
                        return str(entry.value.session)
                await asyncio.sleep(0.02)

    async def decide(self, *slots: Slot) -> None:
        """Want these on the GPU, as the scheduler does."""
        self._generation += 1
        decision = GpuDecision(
            node=NODE,
            gpu=self.gpu,
            term=1,
            generation=self._generation,
            session=await self.session(),
            slots=slots,
            cause="the test wants it so",
        )
        await self.bus.publish(DECISIONS, decision, node=NODE, gpu=self.gpu)

    async def fact(self, kind: type[RunEvent], job: str = "job") -> Any:
        return await self._event(lambda event: isinstance(event, kind) and event.job == job)

    async def alert(self, job: str = "job", *, over: bool) -> EvictionAlert:
        found: EvictionAlert = await self._event(
            lambda event: isinstance(event, EvictionAlert) and event.job == job and (event.total_ms is not None) is over
        )
        return found

    def alerts(self) -> list[EvictionAlert]:
        return [event for event in self.events if isinstance(event, EvictionAlert)]

    async def _event(self, wanted: Any) -> Any:
        async with asyncio.timeout(20), self._news:
            while True:
                for event in self.events:
                    if wanted(event):
                        return event
                await self._news.wait()

    async def _hear(self, message: Message[Any]) -> None:
        async with self._news:
            self.events.append(message.event)
            self._news.notify_all()


@contextlib.asynccontextmanager
async def protected_node(root: Path) -> AsyncIterator[ProtectedNode]:
    """Have such a node for the block; afterwards nothing of it is left."""
    memory = Path(tempfile.mkdtemp(prefix="mux-", dir="/dev/shm"))
    memory.chmod(0o711)
    node = ProtectedNode(root, memory)
    try:
        await node.open()
        yield node
    finally:
        await node.close()
        shutil.rmtree(memory, ignore_errors=True)
