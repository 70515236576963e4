"""What runs beside the online services in a phase: nobody, programs by hand, or the jobs of the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from muxflow.contracts import JobState, JobSummary, SpeedModel
from muxflow.contracts.queries import Solve
from muxflow_run.by_hand import ByHand, size_on
from muxflow_run.plan import Job
from muxflow_run.queue import Queue
from muxflow_run.stage import LOOK_S, Stage

SETTLE_S: Final = 0.5
"""Before the measured services start; `LEAD_S` comes on top. First requests and first kernels are dear."""
_ENDED_S: Final = 20.0


class Beside:
    """Nobody: the services are alone."""

    note = "the online services alone"

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.jobs: tuple[JobSummary, ...] = ()
        self.solves: tuple[Solve, ...] = ()
        self.model: SpeedModel | None = None

    @property
    def pids(self) -> Mapping[int, int]:
        """Offline programs that the bus does not tell of: process id by index of the GPU."""
        return {}

    async def start(self) -> None:
        """Come to where it can be measured."""
        await asyncio.sleep(SETTLE_S)

    async def during(self) -> None:
        """Do what is to be done inside of the window, from its begin on."""

    async def look(self) -> None:
        """Learn how everything is at the end of the window."""

    async def stop(self) -> None:
        """End it, whatever state it is in. Twice is as good as once."""


class Programs(Beside):
    """Offline programs as plain MPS clients: MuxFlow runs, and does not know what they are."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        sizes = ", ".join(f"{size_on(gpu).name} on {gpu.name}" for gpu in stage.plan.gpus)
        self.note = f"offline programs by hand, nothing protects: {sizes}"
        self._programs = ByHand(stage.plan, stage.environments)

    @property
    def pids(self) -> Mapping[int, int]:
        """Process id by index of the GPU."""
        return self._programs.pids

    async def start(self) -> None:
        """Start them. Raises `LoadError`."""
        await self._programs.start()
        for gpu in self.stage.plan.gpus:
            self.stage.board.put(gpu.index, size_on(gpu).name)
        await asyncio.sleep(SETTLE_S)

    async def stop(self) -> None:
        """End them."""
        await self._programs.stop()


class Jobs(Beside):
    """Jobs that are submitted as events, and run under MuxFlow."""

    note = "the jobs of the queue, under MuxFlow"

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._submitted: list[Job] = []

    async def start(self) -> None:
        """Submit the queue; wait until every GPU has a job that is no more measured, or the time for that is over.

        Raises `QueueError`.
        """
        board, plan = self.stage.board, self.stage.plan
        first = [job for job in plan.jobs if job.after_s == 0]
        await self._submit(first)
        board.enter(board.phase, f"{len(first)} jobs are submitted; unknown ones are measured", seconds=plan.warm_up_s)
        deadline_s = asyncio.get_running_loop().time() + plan.warm_up_s
        while missing := await self._not_yet():
            if asyncio.get_running_loop().time() > deadline_s:
                self.note = f"{self.note}; at the begin: {', '.join(missing)}"
                break
            await asyncio.sleep(LOOK_S)
        await asyncio.sleep(SETTLE_S)

    async def during(self) -> None:
        """Submit the jobs that come later. Raises `QueueError`."""
        passed_s = 0.0
        for job in sorted((job for job in self.stage.plan.jobs if job.after_s > 0), key=lambda job: job.after_s):
            await asyncio.sleep(job.after_s - passed_s)
            passed_s = job.after_s
            await self._submit([job])
            self.stage.board.tell(f"{job.name} is submitted, priority {job.priority}")

    async def look(self) -> None:
        """Learn where the jobs are, and how they were matched."""
        self.jobs = await self.stage.recorder.jobs()
        queue = await self.stage.recorder.queue()
        self.solves = queue.solves if queue is not None else ()
        self.model = await self.stage.recorder.model()

    async def stop(self) -> None:
        """Cancel what has not ended, and wait for that: the next phase is without jobs. Raises `QueueError`."""
        if not self._submitted:
            return
        self._submitted.clear()
        async with Queue(self.stage.machine.state_dir) as queue:
            for job in await self.stage.recorder.jobs():
                if not job.state.terminal:
                    await queue.cancel(job.job)
        deadline_s = asyncio.get_running_loop().time() + _ENDED_S
        while left := [job.job for job in await self.stage.recorder.jobs() if not job.state.terminal]:
            if asyncio.get_running_loop().time() > deadline_s:
                self.stage.board.tell(f"not cancelled within {_ENDED_S:g} s: {', '.join(left)}")
                return
            await asyncio.sleep(LOOK_S)

    async def _submit(self, jobs: list[Job]) -> None:
        async with Queue(self.stage.machine.state_dir) as queue:
            for job in jobs:
                self._submitted.append(job)
                await queue.submit(job)

    async def _not_yet(self) -> list[str]:
        """GPUs on which no job runs for good, and jobs that are still to be measured."""
        without = [
            f"{self.stage.gpus[device.gpu.uuid].name} without work"
            for device in await self.stage.recorder.devices()
            if device.job_state is not JobState.RUNNING
        ]
        queue = await self.stage.recorder.queue()
        unknown = [job.job for job in queue.jobs if not job.profiled] if queue is not None else []
        return [*without, *([f"{len(unknown)} jobs not measured"] if unknown else [])]
