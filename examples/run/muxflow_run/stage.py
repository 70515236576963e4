"""One phase on a machine that is up: what everything in it shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from muxflow.client import Client, ClientError
from muxflow.contracts import DeviceCondition, DeviceSummary, Pair, Speed
from muxflow_run.board import Board
from muxflow_run.machine import Machine
from muxflow_run.plan import Gpu, Plan
from muxflow_run.queue import TENANT
from muxflow_run.recorder import Recorder, Seen

LOOK_S: Final = 0.25
_CALM_S: Final = 40.0


class StageError(Exception):
    """A phase does not come to where it can be measured. The message says what is not as it should be."""


class Stage:
    """A machine, its GPUs as programs see them, and everything that is told of it."""

    def __init__(self, plan: Plan, machine: Machine, board: Board) -> None:
        self.plan = plan
        self.machine = machine
        self.board = board
        self.environments: dict[int, dict[str, str]] = {}
        """By index of the GPU: what a program needs to be served there."""
        self.recorder = Recorder.connect(machine.state_dir, self._hear)
        self.predictions: dict[tuple[str, int], Speed] = {}
        self.gpus: dict[str, Gpu] = {}
        """By UUID."""
        self._asking: set[asyncio.Task[None]] = set()

    @property
    def client(self) -> Client:
        """The operator's connection."""
        return self.recorder.client

    async def meet(self) -> None:
        """Learn which GPUs there are, and wait until all of them may have offline work. Raises `StageError`."""
        deadline_s = asyncio.get_running_loop().time() + _CALM_S
        while len(devices := await self.recorder.devices()) != len(self.plan.gpus):  # their node tells of them
            if asyncio.get_running_loop().time() > deadline_s:
                raise StageError(f"{len(devices)} GPUs are there, {len(self.plan.gpus)} were planned")
            await asyncio.sleep(LOOK_S)
        self.gpus = {device.gpu.uuid: self.plan.gpus[device.gpu.index] for device in devices}
        self.environments = {gpu.index: self.machine.environment(uuid) for uuid, gpu in self.gpus.items()}
        self.board.know({uuid: gpu.index for uuid, gpu in self.gpus.items()})
        await self.until_all("takes no offline work", self._is_healthy)

    def _is_healthy(self, device: DeviceSummary) -> bool:
        """Whether it is now: what was told of it when the machine ran before counts for nothing."""
        now = device.since_ns > self.machine.started_ns
        return now and device.alive and device.state is DeviceCondition.HEALTHY

    async def served(self) -> None:
        """Wait until every service was seen on its GPU. Raises `StageError`."""
        await self.until_all("is without its service", self._has_its_service)

    def _has_its_service(self, device: DeviceSummary) -> bool:
        service = self.gpus[device.gpu.uuid].service
        return service is None or device.workload == service.name

    async def until_all(self, otherwise: str, look: Callable[[DeviceSummary], bool]) -> None:
        """Wait until `look` is content with every GPU. Raises `StageError`."""
        deadline_s = asyncio.get_running_loop().time() + _CALM_S
        while missing := [device for device in await self.recorder.devices() if not look(device)]:
            if asyncio.get_running_loop().time() > deadline_s:
                told = "; ".join(f"{self.gpus[each.gpu.uuid].name} {otherwise}: {each.cause}" for each in missing)
                raise StageError(f"after {_CALM_S:g} s {told}")
            await asyncio.sleep(LOOK_S)

    def _hear(self, seen: Seen) -> None:
        """Take in an event. What is predicted for a job that has just begun is asked at once."""
        self.board.hear(seen)
        if seen.received.kind == "runs.started":
            task = asyncio.create_task(self._predict(seen.received.event.job, seen.received.event.attempt))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _predict(self, name: str, attempt: int) -> None:
        try:
            record = (await self.client.job(f"{TENANT}/{name}")).record
        except ClientError:
            return
        if record.placement is None or record.attempt != attempt:
            return
        gpu = self.gpus[record.placement.gpu]
        pair = Pair(
            offline_key=record.spec.measured_as,
            memory_bytes=record.spec.gpu.memory_bytes,
            gpu_kind=gpu.kind,
            workload=gpu.service.name if gpu.service is not None else None,
            sm_share_pct=record.placement.sm_share_pct,
        )
        if speeds := await self.recorder.speeds((pair,)):
            self.predictions[name, attempt] = speeds[0]
