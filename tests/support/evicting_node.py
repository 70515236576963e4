"""A node with a real evictor process; what it sees and whom it asks are the test's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from muxflow.bus import Bus, Message
from muxflow.bus.credentials import Principal
from muxflow.contracts import Attempt, DeviceCondition, ExitStatus, Role
from muxflow.contracts.catalogue import ALERTS_EVICTION
from muxflow.contracts.devices import EvictionAlert
from muxflow_decisions.device.gate import FROZEN, Gate, GateState, JobPhase
from muxflow_device.eviction import (
    EvictDone,
    EvictEnd,
    EvictionServer,
    EvictOrder,
    EvictRefused,
    EvictReply,
    EvictStep,
)
from muxflow_device.pages import DevicePageWriter, DeviceReport, JobControlWriter, JobLimits, JobOrder
from muxflow_device.rundir import RunDirectory
from world import Service, World

NODE = "node.a"
GPU = "GPU-1"
OPEN = Gate(state=GateState.OPEN, budget_permille=900, window_us=2000)
TRICKLE = Gate(state=GateState.TRICKLE, budget_permille=50, window_us=500)
JOB = Attempt(tenant="default", job="train", attempt=1)


class Monitor:
    """Writes one device page, and keeps its heartbeat going."""

    def __init__(self, run: RunDirectory, *, gpu: str = GPU) -> None:
        self._writer = DevicePageWriter(run.device(gpu), uuid=gpu, stale_after_ms=300)
        self._epoch = 0
        self._report = DeviceReport(time_boottime_ns=1, condition=DeviceCondition.INIT, since_boottime_ns=1)
        self._beating: asyncio.Task[None] | None = None
        self.activity_permille = 100

    def say(self, condition: DeviceCondition, cause: str = "", *, hard: bool = False) -> int:
        """Enter a condition; gives back when, by the wall clock."""
        self._epoch += 1
        now_ns = _boottime_ns()
        self._report = DeviceReport(
            time_boottime_ns=now_ns,
            condition=condition,
            since_boottime_ns=now_ns,
            hard=hard,
            epoch=self._epoch,
            cause=cause,
            online_activity_permille=self.activity_permille,
        )
        self._writer.write(self._report)
        self._writer.store_gate(_gate(condition, hard=hard), epoch=self._epoch)
        self._writer.beat()
        return time.time_ns()

    def start(self) -> None:
        """Live."""
        self._beating = asyncio.create_task(self._beat())

    async def die(self) -> None:
        """Leave the page to grow stale."""
        if self._beating is not None:
            self._beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._beating

    async def close(self) -> None:
        await self.die()
        self._writer.close()

    async def _beat(self) -> None:
        while True:
            report = DeviceReport(
                **{
                    **{name: getattr(self._report, name) for name in self._report.__struct_fields__},
                    "time_boottime_ns": _boottime_ns(),
                    "online_activity_permille": self.activity_permille,
                }
            )
            self._writer.write(report)
            self._writer.beat()
            await asyncio.sleep(0.02)


class ScriptedExecutor:
    """Listens where the executor does; evicts what it is said to run, as quickly as it is let."""

    def __init__(self, run: RunDirectory) -> None:
        self.orders: list[EvictOrder] = []
        self.running: set[Attempt] = set()
        self.ended: dict[Attempt, ExitStatus] = {}
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.refuses = False
        self._run = run
        self._controls: dict[Attempt, JobControlWriter] = {}
        self._server = EvictionServer(run.executor_socket, self._carry_out)
        self._news = asyncio.Condition()

    def start_job(self, attempt: Attempt = JOB, *, gpu: str = GPU) -> None:
        self.running.add(attempt)
        limits = JobLimits(gpu=gpu, quota_bytes=None)
        order = JobOrder(gate=OPEN, phase=JobPhase.RUN)
        self._controls[attempt] = JobControlWriter(self._run.job(attempt), limits, order)

    def end_job(self, attempt: Attempt, status: ExitStatus) -> None:
        self.running.discard(attempt)
        self.ended[attempt] = status
        self._controls.pop(attempt).close()
        self._run.job(attempt).remove()

    @property
    def socket(self) -> Path:
        return self._run.executor_socket

    async def listen(self) -> None:
        self._server = EvictionServer(self._run.executor_socket, self._carry_out)
        await self._server.open()

    async def hang_up(self) -> None:
        await self._server.close()

    async def ordered(self, count: int = 1) -> EvictOrder:
        """Wait until so many orders have come; gives back the last of them."""
        async with asyncio.timeout(20), self._news:
            while len(self.orders) < count:
                await self._news.wait()
        return self.orders[count - 1]

    async def _carry_out(self, order: EvictOrder) -> AsyncGenerator[EvictReply | EvictRefused, None]:
        async with self._news:
            self.orders.append(order)
            self._news.notify_all()
        if self.refuses:
            yield EvictRefused(reason="an order of another version")
            return
        concerned = sorted(self.running) if order.attempts is None else list(order.attempts)
        for attempt in concerned:
            if attempt in self.running:
                yield EvictStep(attempt=attempt, step="freeze", time_ns=time.time_ns())
        await self.may_end.wait()
        for attempt in concerned:
            if attempt in self.running:
                self.end_job(attempt, ExitStatus(signal="SIGTERM"))
            total_ms = (time.time_ns() - order.decided_ns) / 1e6
            yield EvictDone(attempt=attempt, exit=self.ended.get(attempt), total_ms=total_ms)
        yield EvictEnd(attempts=len(concerned))


class EvictingNode:
    """The bus, a device page, an executor, and the evictor between them."""

    def __init__(self, root: Path, run_dir: Path) -> None:
        self.world = World(root, nodes={NODE: 1}, env={})
        self.run = RunDirectory(run_dir)
        self.run.prepare()
        self.state_dir = root / "evictor"
        self.monitor = Monitor(self.run)
        self.executor = ScriptedExecutor(self.run)
        self.alerts: list[tuple[EvictionAlert, int]] = []
        """Each with the time at which it arrived."""
        self.bus: Bus
        self._news = asyncio.Condition()
        self._evictor: Service | None = None
        self._stack = contextlib.AsyncExitStack()

    async def open(self) -> None:
        await self.world.start_servers()
        principal = Principal(role=Role.OPERATOR)
        self.bus = await self._stack.enter_async_context(await self.world.connect(principal))
        await self.bus.read(ALERTS_EVICTION, self._heard, start="all")
        self.monitor.say(DeviceCondition.HEALTHY)
        self.monitor.start()
        await self.executor.listen()

    async def close(self) -> None:
        await self._stack.aclose()
        await self.executor.hang_up()
        await self.monitor.close()
        await self.world.stop()

    @property
    def evictor(self) -> Service:
        assert self._evictor is not None
        return self._evictor

    def env(self, **settings: str) -> dict[str, str]:
        return {
            **self.world._bus_env(Principal(role=Role.NODE, bound_to=NODE), self.world.urls),
            "MUXFLOW_EVICTOR__NODE": NODE,
            "MUXFLOW_EVICTOR__RUN_DIR": str(self.run.path),
            "MUXFLOW_EVICTOR__STATE_DIR": str(self.state_dir),
            **{f"MUXFLOW_EVICTOR__{name.upper()}": value for name, value in settings.items()},
        }

    async def start_evictor(self, **settings: str) -> None:
        """Start it, or start it again."""
        already = len(self.log("watching")) if self._evictor is not None else 0
        if self._evictor is None:
            self._evictor = self.world._add("evictor", "muxflow_evictor", self.env(**settings))
        else:
            self._evictor.start()
        await self.logged("watching", already + 1)

    def log(self, event: str) -> list[dict[str, Any]]:
        """Lines that the evictor has logged of this event."""
        lines = (json.loads(line) for line in self.evictor.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]

    async def logged(self, event: str, count: int = 1) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while len(found := self.log(event)) < count:
                await asyncio.sleep(0.01)
        return found[count - 1]

    async def alert(self, count: int = 1) -> tuple[EvictionAlert, int]:
        """Wait until so many alerts have come; gives back the last of them, and when it came."""
        async with asyncio.timeout(20), self._news:
            while len(self.alerts) < count:
                await self._news.wait()
        return self.alerts[count - 1]

    async def _heard(self, message: Message[EvictionAlert]) -> None:
        async with self._news:
            self.alerts.append((message.event, time.time_ns()))
            self._news.notify_all()


def _gate(condition: DeviceCondition, *, hard: bool) -> Gate:
    if condition is DeviceCondition.HEALTHY:
        return OPEN
    trickles = condition in (DeviceCondition.OVERLIMIT, DeviceCondition.DISABLED) and not hard
    return TRICKLE if trickles else FROZEN


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
