"""A machine that `muxflow up` runs on simulated GPUs, with online services beside its offline jobs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from machine import Machine
from muxflow.client import Client, NoAnswer, NotConnected, Received
from muxflow.contracts import DeviceCondition, DeviceState, DeviceSummary, JobRecord, JobState, encode_token
from muxflow_simgpu import DIR_VARIABLE, Operation, SimulatedMachine, device_busy
from workloads import OnlineService, offline_job, until

SECOND_NS = 1_000_000_000
T = TypeVar("T")
TERMINAL = ("jobs.finished", "jobs.failed", "jobs.cancelled")


class Portal:
    """The client for tests that are no coroutines: a command for each look would cost more than what is looked at."""

    def __init__(self, state_dir: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client: Client = self.call(self._open(state_dir))

    @staticmethod
    async def _open(state_dir: Path) -> Client:
        return await Client.connect(state_dir=state_dir, timeout_s=20).__aenter__()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the client's loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def answer(self, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask until somebody is there to answer: services are killed here, and begin."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.call(question())
            except (NoAnswer, NotConnected):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def devices(self) -> tuple[DeviceSummary, ...]:
        return self.answer(lambda: self._client.devices(newest=False))

    def job(self, name: str) -> JobRecord:
        return self.answer(lambda: self._client.job(name)).record

    def evict(self, device: DeviceSummary) -> None:
        """As `muxflow evict` does."""
        self.answer(lambda: self._client.evict(device.node, device.gpu.uuid))

    def cancel(self, name: str) -> None:
        """As `muxflow cancel` does."""
        self.answer(lambda: self._client.cancel(name))

    @contextlib.contextmanager
    def listen(self, subject: str) -> Iterator[list[tuple[int, Any]]]:
        """Collect events as they come, each with the time (ns, UTC) at which it was here."""
        received: list[tuple[int, Any]] = []

        async def collect() -> None:
            async for each in self._client.events(subject, follow=True):
                received.append((time.time_ns(), each.event))  # noqa: PERF401 - it never ends

        listening = asyncio.run_coroutine_threadsafe(collect(), self._loop)
        try:
            yield received
        finally:
            listening.cancel()

    def events(self, subject: str) -> list[Received]:
        """Everything that was published on subjects that begin so."""

        async def read() -> list[Received]:
            return [each async for each in self._client.events(subject, since_s=3600, follow=False)]

        return self.answer(read)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.call(self._client.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class ProtectedMachine(Machine):
    """One `muxflow up --simulate …`."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self._services: list[OnlineService] = []
        self._portal: Portal | None = None
        self._environments: dict[tuple[int, bool], dict[str, str]] = {}

    def simulate(self, *kinds: str, policy: Mapping[str, float] | None = None, **settings: float) -> None:
        """Start it with these GPUs. `policy` is the monitor's; settings are as ``evictor__policy__x=1``.

        Jobs are not measured first, so that they begin as they go on: beside the online side.
        """
        words = [word for kind in kinds for word in ("--simulate", kind)]
        policies = {f"monitor__policy__{key}": value for key, value in (policy or {}).items()}
        for key, value in {"scheduler__profiling": False, **settings, **policies}.items():
            words += ["--set", f"{key.replace('__', '.')}={json.dumps(value)}"]
        self.start(*words)
        until(
            lambda: all(each.state is DeviceCondition.HEALTHY for each in self.portal.devices()),
            20,
            "all devices are healthy",
        )

    @property
    def portal(self) -> Portal:
        """The client."""
        if self._portal is None:
            self._portal = Portal(self.state_dir)
        return self._portal

    def device(self, index: int = 0) -> DeviceSummary:
        """What is known of one GPU."""
        return next(each for each in self.portal.devices() if each.gpu.index == index)

    def story(self, index: int = 0) -> list[DeviceState]:
        """Every change of a device's state so far, oldest first."""
        subject = f"devices.state.*.{encode_token(self.device(index).gpu.uuid)}"
        return [each.event for each in self.portal.events(subject)]

    def wait_state(self, state: DeviceCondition, seconds: float = 20.0, index: int = 0) -> None:
        until(lambda: self.device(index).state is state, seconds, lambda: f"{state}: {self.device(index)}")

    @property
    def gpus(self) -> SimulatedMachine:
        """The devices themselves."""
        return SimulatedMachine(Path(self.environment()[DIR_VARIABLE]))

    def environment(self, index: int = 0, *, beacon: bool = True) -> dict[str, str]:
        """What an online program needs, as people get it."""
        if (index, beacon) not in self._environments:
            options = () if beacon else ("--no-beacon",)
            self._environments[index, beacon] = self.json("device", "env", str(index), *options)
        return self._environments[index, beacon]

    def online(self, index: int = 0, **options: Any) -> OnlineService:
        """Start an online service on a GPU, and wait until it serves."""
        log = self.state_dir.parent / f"online-{len(self._services)}.jsonl"
        service = OnlineService(log, self.environment(index), **options)
        self._services.append(service)
        service.ready()
        return service

    def submit(self, name: str, **options: Any) -> None:
        """Submit an example job."""
        done = self.run("submit", "-", stdin=offline_job(name, **options))
        assert done.returncode == 0, done.stdout + done.stderr

    def job(self, name: str) -> JobRecord:
        """The record of a job."""
        return self.portal.job(name)

    def wait_job(self, name: str, look: Callable[[JobRecord], object], seconds: float, what: str) -> JobRecord:
        """Wait until a job is as `look` wants it."""
        until(lambda: look(self.job(name)), seconds, lambda: f"{name} {what}: {self.job(name)}")
        return self.job(name)

    def running_pid(self, name: str, seconds: float = 30.0) -> int:
        """Wait until a job's program is on the GPU; gives its process id."""
        record = self.wait_job(name, lambda job: job.state is JobState.RUNNING, seconds, "runs")
        (pid,) = (
            each.event.pid
            for each in self.portal.events("runs.started")
            if (each.names["job"], each.event.attempt) == (name, record.attempt)
        )
        gpus = self.gpus
        until(lambda: pid in {client.pid for client in gpus.clients(0)}, seconds, f"{name} is on the GPU")
        return int(pid)

    def ended(self, name: str) -> Counter[str]:
        """Wait until it is told that a job has ended; gives how often each terminal event was told."""
        told: Counter[str] = Counter()

        def look() -> Counter[str]:
            events = (each for kind in TERMINAL for each in self.portal.events(kind))
            told.update(each.kind for each in events if each.names["job"] == name)
            return told

        until(look, 20, f"{name} is told to have ended")
        return told

    def operations(self, index: int = 0) -> tuple[Operation, ...]:
        """The device's own log."""
        return self.gpus.operations(index)

    def busy_share(self, pids: set[int], seconds: float, index: int = 0) -> float:
        """Share of the last seconds in which kernels of these processes ran."""
        end_ns = time.monotonic_ns()
        begin_ns = end_ns - int(seconds * SECOND_NS)
        busy = device_busy(self.operations(index), begin_ns, end_ns, pids=pids)
        return sum(end - begin for begin, end in busy) / (end_ns - begin_ns)

    @contextlib.contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Have a program stand still."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def kill(self, *names: str) -> None:
        """Kill programs, and wait until the supervisor has others in their places."""
        pids = {name: self.pid(name) for name in names}
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        while any(self.pid(name) == pid for name, pid in pids.items()):
            self.report("started")

    def stop(self) -> None:
        """End everything, online services first."""
        for service in self._services:
            service.kill()
        if self._portal is not None:
            self._portal.close()
        super().stop()
