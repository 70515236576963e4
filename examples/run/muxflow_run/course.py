"""The course of a run: which machine is up when, and what was seen of each phase."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, Final

from muxflow_run import host
from muxflow_run.beside import Beside, Jobs, Programs
from muxflow_run.board import Board
from muxflow_run.device_log import DIRECTORY, DeviceLog
from muxflow_run.load import Load
from muxflow_run.machine import Machine, left
from muxflow_run.observation import Observation
from muxflow_run.plan import WORKLOADS, Plan, rates
from muxflow_run.stage import Stage

ALONE, UNPROTECTED, PROTECTED, ALONE_AGAIN = PHASES = ("alone", "unprotected", "protected", "alone_again")
_TELEMETRY_S: Final = 0.3
"""What is told of the window's last second comes a little later."""


def state_dirs(root: Path) -> tuple[Path, Path]:
    """Of the machine that protects, and of one to which the programs by hand are online ones, also in forecasts."""
    return root / "state", root / "state-unprotected"


class Course:
    """One run."""

    def __init__(self, plan: Plan, board: Board, root: Path, arguments: tuple[str, ...]) -> None:
        self.observations: dict[str, Observation] = {}
        """By phase, as far as it has come."""
        self.troubles: list[str] = []
        self._plan = plan
        self._board = board
        self._root = root
        self._arguments = arguments

    async def run(self) -> None:
        """Go through all phases.

        Raises `MachineError`, `LoadError`, `QueueError`, `StageError`, and what the client raises.
        """
        self._write_rates()
        protecting, bare = state_dirs(self._root)
        async with self._machine(ALONE, protecting) as machine:
            await self._phase(ALONE, machine, Beside)
        async with self._machine(UNPROTECTED, bare) as machine:
            await self._phase(UNPROTECTED, machine, Programs)
        async with self._machine(PROTECTED, protecting) as machine:
            await self._phase(PROTECTED, machine, Jobs)
            await self._phase(ALONE_AGAIN, machine, Beside)

    def _write_rates(self) -> None:
        text = (WORKLOADS / "rates-day.txt").read_text()
        for _, service in self._plan.served:
            lines = "".join(f"{rate}\n" for rate in rates(service, text))
            (self._root / f"{service.name}.rates").write_text(lines)

    @contextlib.asynccontextmanager
    async def _machine(self, phase: str, state_dir: Path) -> AsyncIterator[Machine]:
        self._board.enter(phase, "muxflow up")
        machine = Machine(state_dir, self._arguments, str(self._root))
        try:
            await machine.start()
            yield machine
        finally:
            self._board.tell("stopping muxflow up")
            await machine.stop()
            self.troubles += [f"{phase}: {trouble}" for trouble in machine.troubles]

    async def _phase(self, name: str, machine: Machine, kind: type[Beside]) -> None:
        """Run one phase on a machine that is up."""
        stage = Stage(self._plan, machine, self._board)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(stage.client)
            await stack.enter_async_context(_meanwhile(stage.recorder.follow()))
            await stage.meet()
            beside = kind(stage)
            stack.push_async_callback(beside.stop)
            load = Load(self._plan, self._root, stage.environments, self._board.second)
            stack.push_async_callback(load.stop)  # before `beside`: what is killed under MPS hurts its neighbours
            self.observations[name] = await self._observed(name, stage, load, beside)

    async def _observed(self, name: str, stage: Stage, load: Load, beside: Beside) -> Observation:
        """Warm up, measure, and give what was seen."""
        self._board.enter(name, "online services start")
        began_ns = time.monotonic_ns()
        await load.warm_up()
        await stage.served()
        await beside.start()
        async with contextlib.AsyncExitStack() as stack:
            log = self._device_log(stage)
            window = await load.prepare()
            if log is not None:
                log.begin(window, frozenset(pid for pids in load.pids.values() for pid in pids))
                await stack.enter_async_context(_meanwhile(log.follow()))
            await load.take_over(window)
            self._board.enter(name, f"measuring {beside.note}", seconds=window.seconds)
            before = host.read(self._processes())
            await stack.enter_async_context(_meanwhile(beside.during()))
            requests = await load.finish()
            used = host.between(before, host.read(self._processes()))
            await beside.look()
            await asyncio.sleep(_TELEMETRY_S)
        if log is not None:
            log.look()
        return Observation(
            plan=self._plan,
            window=window,
            warm_up_s=(window.begin_ns - began_ns) / 1e9,
            note=beside.note,
            requests=requests,
            seen=tuple(stage.recorder.seen),
            gpus=dict(stage.gpus),
            tallies=log.tallies if log is not None else {},
            online_pids=load.pids,
            online_kernels=log.kernels if log is not None else {},
            by_hand=dict(beside.pids),
            jobs=beside.jobs,
            predictions=dict(stage.predictions),
            solves=beside.solves,
            model=beside.model,
            host=used,
            monotonic_of_utc_ns=time.monotonic_ns() - time.time_ns(),
        )

    def _processes(self) -> tuple[int, ...]:
        """Everything that runs for this run, itself included."""
        return (os.getpid(), *left(str(self._root)))

    def _device_log(self, stage: Stage) -> DeviceLog | None:
        directory = stage.environments[0].get(DIRECTORY)
        return DeviceLog(self._plan, Path(directory)) if self._plan.simulated and directory else None


@contextlib.asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do something while the block lasts; what it raises is raised at the block's end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
