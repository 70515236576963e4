"""One `muxflow up` on simulated GPUs, and programs on them: services as people start them, jobs as the executor does.

Everything between the two is the real thing: monitor, device page, budget law, beacon, MPS and xCUDA. Only placement is
ours, so that a pair begins at once and has the SM share that the plan wants.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from muxflow.client import Client
from muxflow.contracts import Attempt, DeviceCondition, DeviceSummary
from muxflow.contracts.devices import GpuSample
from muxflow.discovery import environment_on
from muxflow_decisions.device.gate import Gate, GateState, JobPhase
from muxflow_device import native
from muxflow_device.pages import DevicePage, DeviceView, JobControlWriter, JobLimits, JobOrder, JobPage, JobUsage
from muxflow_device.rundir import JobDirectory, RunDirectory

_MUXFLOW: Final = Path(sys.executable).with_name("muxflow")
_OPEN: Final = Gate(state=GateState.OPEN, budget_permille=1000, window_us=65_535)
_OFFLINE_ONLY: Final = ("XCUDA_MODE",)
_ATTEMPTS: Final = itertools.count(1)
_START_S: Final = 30.0
_LOOK_S: Final = 0.05


class SampleError(Exception):
    """A measurement could not be made. The message is one line that says why."""


class Device:
    """One simulated GPU."""

    def __init__(self, summary: DeviceSummary, environment: Mapping[str, str]) -> None:
        self.kind = summary.gpu.kind
        self.uuid = summary.gpu.uuid
        self.memory_bytes = summary.gpu.memory_bytes
        self.environment = dict(environment)
        """Of an online service."""
        self.newest: GpuSample | None = None
        """Newest telemetry."""
        self.run = RunDirectory(Path(self.environment["CUDA_MPS_PIPE_DIRECTORY"]).parents[2])
        self._page = DevicePage(self.run.device(self.uuid))

    def look(self) -> DeviceView:
        """What the monitor says now."""
        return self._page.look()

    async def calm(self) -> None:
        """Wait until it is healthy, and takes offline work. Raises `SampleError`."""
        try:
            async with asyncio.timeout(_START_S):
                while not self._healthy():  # noqa: ASYNC110 - a page can only be looked at
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise SampleError(f"{self.kind} is not healthy within {_START_S:g} s") from None

    def _healthy(self) -> bool:
        report = self.look().report
        return report is not None and report.condition is DeviceCondition.HEALTHY

    def close(self) -> None:
        self._page.close()


class RunningJob:
    """An offline program, and what it says of itself."""

    def __init__(self, process: asyncio.subprocess.Process, page: JobPage) -> None:
        self.pid = process.pid
        self._page = page

    def usage(self) -> JobUsage:
        return self._page.read()


@asynccontextmanager
async def machine(kinds: tuple[str, ...]) -> AsyncIterator[list[Device]]:
    """Run MuxFlow with a GPU of each of these kinds, as often as it is named. Raises `SampleError`."""
    root = Path(tempfile.mkdtemp(prefix="muxflow-sample-"))
    words = [word for kind in kinds for word in ("--simulate", kind)]
    up = await asyncio.create_subprocess_exec(
        *(str(_MUXFLOW), "up", "--json", "--state-dir", str(root), *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    devices: list[Device] = []
    reading: asyncio.Task[None] | None = None
    try:
        await _ready(up)
        async with Client.connect(state_dir=root) as client:
            devices += [
                Device(summary, environment_on(summary.gpu.uuid, directory=root, environ={}))
                for summary in await _listed(client, len(kinds))
            ]
            reading = asyncio.create_task(_read_telemetry(client, {device.uuid: device for device in devices}))
            for device in devices:
                await device.calm()
            yield devices
    finally:
        if reading is not None:
            reading.cancel()
        for device in devices:
            device.close()
        await _end(up, signal.SIGINT, patience_s=60)
        shutil.rmtree(root, ignore_errors=True)


@asynccontextmanager
async def service(device: Device, workloads: Path, arguments: Mapping[str, object]) -> AsyncIterator[int]:
    """Run an online service for the length of a block, from its first answer on; gives its process id."""
    environment = {**os.environ, **device.environment}
    async with _program(workloads / "online_service.py", arguments, environment) as process:
        yield process.pid


@asynccontextmanager
async def job(
    device: Device, workloads: Path, name: str, arguments: Mapping[str, object], *, sm_share_pct: int | None
) -> AsyncIterator[RunningJob]:
    """Run an offline job for the length of a block, from its first batch on."""
    attempt = Attempt(tenant="simulated", job=name, attempt=next(_ATTEMPTS))  # a name of its own, as the executor's
    directory = device.run.job(attempt)
    JobPage.create(directory, gpu=device.uuid)
    control = JobControlWriter(
        directory, JobLimits(gpu=device.uuid, quota_bytes=None), JobOrder(gate=_OPEN, phase=JobPhase.RUN)
    )
    page = JobPage(directory)
    try:
        environment = _offline_environment(device, directory, sm_share_pct)
        options = {**arguments, "batches": 10**9}
        async with _program(workloads / "offline_job.py", options, environment) as process:
            yield RunningJob(process, page)
    finally:
        page.close()
        control.close()
        directory.remove()


def _offline_environment(device: Device, directory: JobDirectory, sm_share_pct: int | None) -> dict[str, str]:
    plain = {name: value for name, value in device.environment.items() if name not in _OFFLINE_ONLY}
    environment = {
        **os.environ,
        **plain,
        "LD_PRELOAD": str(native.path("libxcuda.so")),
        "XCUDA_DEVICE_DIR": str(device.run.device(device.uuid).path),
        "XCUDA_JOB_DIR": str(directory.path),
        "CUDA_MPS_CLIENT_PRIORITY": "1",
    }
    if sm_share_pct is not None:
        environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(sm_share_pct)
    return environment


@asynccontextmanager
async def _program(
    script: Path, arguments: Mapping[str, object], environment: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program from its first line of output on. Raises `SampleError`."""
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), *words),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        try:
            line = await asyncio.wait_for(_output(process).readline(), _START_S)
        except TimeoutError:
            raise SampleError(f"{script.name} says nothing within {_START_S:g} s") from None
        if not line:
            errors = (await process.communicate())[1].decode(errors="replace").strip()
            raise SampleError(f"{script.name}: {errors.splitlines()[-1] if errors else 'ended at once'}")
        yield process
    finally:
        await _end(process, signal.SIGTERM, patience_s=10)


async def _end(process: asyncio.subprocess.Process, number: signal.Signals, *, patience_s: float) -> None:
    """Ask a program to end, and see to it. What it still has to say is of no interest."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
    try:
        await asyncio.wait_for(process.communicate(), patience_s)
    except TimeoutError:
        process.kill()
        await process.communicate()


async def _ready(up: asyncio.subprocess.Process) -> None:
    said = b""
    try:
        async with asyncio.timeout(_START_S):
            async for line in _output(up):
                said = line
                with contextlib.suppress(ValueError):
                    if json.loads(line).get("event") == "ready":
                        return
    except TimeoutError:
        raise SampleError(f"`muxflow up` is not ready within {_START_S:g} s") from None
    raise SampleError(f"`muxflow up` has ended: {said.decode(errors='replace').strip()}")


async def _listed(client: Client, count: int) -> tuple[DeviceSummary, ...]:
    """Wait until the scheduler knows all GPUs."""
    try:
        async with asyncio.timeout(_START_S):
            while len(found := await client.devices(newest=False)) < count:  # noqa: ASYNC110 - it can only be asked
                await asyncio.sleep(_LOOK_S)
            return found
    except TimeoutError:
        raise SampleError(f"{count} GPUs are not known within {_START_S:g} s") from None


def _output(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    if process.stdout is None:
        raise SampleError("a program was started without a pipe for its output")
    return process.stdout


async def _read_telemetry(client: Client, devices: Mapping[str, Device]) -> None:
    async for received in client.events("telemetry"):
        for sample in received.event.gpus:
            if (device := devices.get(sample.gpu)) is not None:
                device.newest = sample
