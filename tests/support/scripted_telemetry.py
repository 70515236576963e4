"""A fleet that exists on the bus alone: nodes, decisions and telemetry as a test scripts them, and a real profiler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from muxflow.bus import Bus, Message
from muxflow.contracts import (
    DeviceCondition,
    Event,
    Gpu,
    GpuDecision,
    GpuSample,
    Launch,
    NodeState,
    NodeTelemetry,
    OfflineUsage,
    OnlineState,
    Purpose,
    Role,
    Slot,
)
from muxflow.contracts.catalogue import (
    DECISIONS,
    NODES_STATE,
    ONLINE_STATE,
    PROFILES_CORUN,
    PROFILES_OFFLINE,
    PROFILES_ONLINE,
    TELEMETRY,
)
from muxflow.testing import TestServer
from watched_node import until

NODE = "node.a"
GPU = "GPU-1"
OTHER_GPU = "GPU-2"
KIND = "A100"
WORKLOAD = "chat"
GIB = 2**30
SECOND_NS = 1_000_000_000
_HEALTHY = GpuSample(
    gpu=GPU,
    state=DeviceCondition.HEALTHY,
    utilization_pct=80.0,
    memory_used_bytes=5 * GIB,
    memory_total_bytes=40 * GIB,
    offline_memory_bytes=GIB,
    online_activity_pct=0.0,
    budget_permille=900,
)


class ScriptedFleet:
    """One node with two GPUs. Telemetry has the times that the script gives it: no test waits for seconds to pass."""

    def __init__(self, node: Bus, scheduler: Bus) -> None:
        self._node = node
        self._scheduler = scheduler
        self._generations = 0
        self.begin_ns = time.time_ns() - 600 * SECOND_NS

    async def offer(self) -> None:
        """Tell which GPUs there are, and that nobody is served."""
        gpus = tuple(Gpu(uuid=gpu, kind=KIND, memory_bytes=40 * GIB) for gpu in (GPU, OTHER_GPU))
        await self._node.publish(NODES_STATE, NodeState(node=NODE, boot_id="b", gpus=gpus), node=NODE)
        for gpu in (GPU, OTHER_GPU):
            await self.serve(None, gpu=gpu)

    async def serve(self, workload: str | None, *, gpu: str = GPU, since_s: float = -3600) -> None:
        """Tell who is served on a GPU."""
        since_ns = self.begin_ns + round(since_s * SECOND_NS)
        state = OnlineState(node=NODE, gpu=gpu, workload=workload, since_ns=since_ns)
        await self._node.publish(ONLINE_STATE, state, node=NODE, gpu=gpu)

    async def place(self, job: str, *, gpu: str = GPU, purpose: Purpose = Purpose.RUN, share: int | None = 90) -> Slot:
        """Decide that a job runs on a GPU, and nothing else does."""
        slot = Slot(
            tenant="default",
            job=job,
            attempt=1,
            purpose=purpose,
            memory_quota_bytes=GIB,
            sm_share_pct=share,
            profile_key=f"default/{job}",
            launch=Launch(command=("true",)),
        )
        await self._decide(gpu, slots=(slot,))
        return slot

    async def clear(self, *, gpu: str = GPU, withdrawn: Sequence[Slot] = ()) -> None:
        """Decide that nothing runs on a GPU any more."""
        await self._decide(gpu, withdrawn=tuple(slot.key for slot in withdrawn))

    async def _decide(self, gpu: str, **what: Any) -> None:
        self._generations += 1
        decision = GpuDecision(node=NODE, gpu=gpu, term=1, generation=self._generations, **what)
        await self._scheduler.publish(DECISIONS, decision, node=NODE, gpu=gpu)

    async def tell(
        self,
        at_s: float,
        slot: Slot | None = None,
        launches: int = 0,
        *,
        gpu: str = GPU,
        usage: Any = None,
        **readings: Any,
    ) -> None:
        """Send one message of telemetry: launches so far, each with 0.4 ms of device time."""
        used = {"busy_us": 400 * launches, "throttled_us": 0, "frozen_us": 0, "refused_bytes": 0, "memory_bytes": GIB}
        offline: tuple[OfflineUsage, ...] = ()
        if slot is not None:
            identity = {"tenant": slot.tenant, "job": slot.job, "attempt": slot.attempt, "launches": launches}
            offline = (msgspec.convert({**identity, **used, **(usage or {})}, OfflineUsage),)
        taken_ns = self.begin_ns + round(at_s * SECOND_NS)
        sample = msgspec.structs.replace(_HEALTHY, gpu=gpu, offline=offline, taken_ns=taken_ns, **readings)
        await self._node.publish_live(TELEMETRY, NodeTelemetry(node=NODE, gpus=(sample,)), node=NODE)

    async def tell_bytes(self, data: bytes) -> None:
        """Send anything where telemetry is expected."""
        await self._node.connection.send(TELEMETRY.of(node=NODE), data)

    async def connected(self) -> None:
        """Wait until the node has its connection again."""
        await until(lambda: self._node.connected, "the node is connected")

    async def run(self, slot: Slot, *, rate: float, seconds: int, begin_s: int = 0, **readings: Any) -> None:
        """Send the telemetry of a steady job, once a second."""
        for at_s in range(begin_s, begin_s + seconds):
            await self.tell(at_s, slot, round(rate * (at_s + 1)), **readings)


class ProfilerProcess:
    """The profiler, which can be killed and started again."""

    def __init__(self, server: TestServer, log: Path, **settings: Any) -> None:
        bus = server.settings(Role.PROFILER)
        self.log = log
        self._env = {
            "MUXFLOW_BUS__SERVERS": msgspec.json.encode(bus.servers).decode(),
            "MUXFLOW_BUS__CREDENTIALS": str(bus.credentials),
            "MUXFLOW_BUS__INBOX_PREFIX": bus.inbox_prefix,
            "MUXFLOW_HTTP__PORT": "0",
            "MUXFLOW_PROFILER__PUBLISH_S": "0.1",
            **{
                f"MUXFLOW_PROFILER__{key.upper()}": msgspec.json.encode(value).decode()
                for key, value in settings.items()
            },
        }
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        started = len(self.logged("started"))
        self._start()
        await until(lambda: len(self.logged("started")) > started, "the profiler is started")
        await until(lambda: self.http("/readyz")[0] == 200, "the profiler is ready")

    def exit_code(self) -> int:
        """Start it, and wait until it has ended by itself."""
        return self._start().wait(20)

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "muxflow_profiler"],
                env={**os.environ, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self._process

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait for the end; gives the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(20)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(20)

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = (self.log.read_bytes() if self.log.exists() else b"").splitlines()
        found = [msgspec.json.decode(line) for line in lines if line.startswith(b"{")]
        return [line for line in found if line["event"] == event]

    def http(self, path: str) -> tuple[int, str]:
        port = self.logged("started")[-1]["http_port"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self) -> dict[str, float]:
        """Every sample by its name and labels."""
        lines = self.http("/metrics")[1].splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


class Profiles:
    """What is published, newest per subject."""

    def __init__(self) -> None:
        self.newest: dict[tuple[str, ...], Any] = {}
        self.all: list[Event] = []

    @classmethod
    async def read(cls, bus: Bus) -> Profiles:
        profiles = cls()
        await bus.read([PROFILES_OFFLINE, PROFILES_ONLINE, PROFILES_CORUN], profiles._take, start="all")
        return profiles

    def _take(self, message: Message[Any]) -> None:
        self.all.append(message.event)
        self.newest[message.subject.name, *message.names.values()] = message.event

    def offline(self, job: str) -> Any:
        return self.newest.get(("profiles.offline", f"default/{job}", KIND))

    def online(self) -> Any:
        return self.newest.get(("profiles.online", WORKLOAD, KIND))

    def corun(self, job: str) -> Any:
        return self.newest.get(("profiles.corun", f"default/{job}", WORKLOAD, KIND))
