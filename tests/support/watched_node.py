"""A node's monitor as a process of its own, over simulated GPUs and, if there is one, a bus."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from muxflow.bus import Bus, BusSettings, Message
from muxflow.contracts import DeviceState, Subject
from muxflow_device.pages import DevicePage, DeviceView
from muxflow_device.rundir import RunDirectory
from muxflow_simgpu import SimulatedMachine

NODE = "node.a"
SERVICE = "chat"
PATIENCE_S = 20.0
_QUICK = {"policy": {"settle_s": 0.2, "relax_s": 0.5, "readmit_s": 2.0}}
"""Calm comes sooner than in production."""
T = TypeVar("T")


class WatchedNode:
    """The monitor of one node; it can be killed, stopped, frozen and started again."""

    def __init__(self, root: Path, machine: SimulatedMachine, bus: BusSettings | None, **settings: Any) -> None:
        self.machine = machine
        self.state_dir = root / "monitor-state"
        self.run = RunDirectory(machine.directory.parent / "run")
        self.log = root / "monitor.log"
        self._env = {
            **machine.environment(),
            "MUXFLOW_MONITOR__NODE": NODE,
            "MUXFLOW_MONITOR__STATE_DIR": str(self.state_dir),
            "MUXFLOW_MONITOR__RUN_DIR": str(self.run.path),
            "MUXFLOW_HTTP__PORT": "0",
            **{f"MUXFLOW_MONITOR__{key.upper()}": _text(value) for key, value in {**_QUICK, **settings}.items()},
            **_bus_env(bus),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._pages: dict[str, DevicePage] = {}

    @property
    def uuids(self) -> list[str]:
        return [device.uuid for device in self.machine.devices()]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "muxflow_monitor"],
                env={**os.environ, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and wait for the end; gives the exit code."""
        assert self._process is not None
        self.send(number)
        return self._process.wait(PATIENCE_S)

    def exit_code(self) -> int:
        """Wait until it has ended by itself."""
        assert self._process is not None
        return self._process.wait(PATIENCE_S)

    def close(self) -> None:
        for page in self._pages.values():
            page.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE_S)

    def look(self, index: int = 0) -> DeviceView:
        """Read a device page as everybody does."""
        uuid = self.uuids[index]
        if uuid not in self._pages:
            self._pages[uuid] = DevicePage(self.run.device(uuid))
        return self._pages[uuid].look()

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Give its log lines of one kind."""
        lines = (self.log.read_bytes() if self.log.exists() else b"").splitlines()
        found = [msgspec.json.decode(line) for line in lines if line.startswith(b"{")]
        return [line for line in found if line["event"] == event]

    def http(self, path: str) -> tuple[int, str]:
        """Ask its HTTP port."""
        port = self.logged("started")[-1]["http_port"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """Read one metric; 0 when it is not there."""
        wanted = ",".join(f'{key}="{value}"' for key, value in labels.items())
        pattern = "^" + re.escape(name + (f"{{{wanted}}}" if wanted else "")) + r" (\S+)$"
        found = re.search(pattern, self.http("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0


MakeNode = Callable[..., WatchedNode]


class Heard:
    """Everything that a test has heard on some subjects, in order."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    @classmethod
    async def on(cls, bus: Bus, *subjects: Subject) -> Heard:
        """Read what these subjects have kept, and what comes."""
        heard = cls()
        await bus.read(list(subjects), heard._take, start="all")
        return heard

    def _take(self, message: Message[Any]) -> None:
        self.events.append(message.event)

    def of(self, kind: type[T], **fields: Any) -> list[T]:
        """Give those of one kind with these fields."""
        return [
            event
            for event in self.events
            if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items())
        ]

    async def first(self, kind: type[T], **fields: Any) -> T:
        """Wait for such an event."""
        await until(lambda: self.of(kind, **fields), f"{kind.__name__} {fields}")
        return self.of(kind, **fields)[0]

    def states(self, gpu: str) -> list[str]:
        return [event.state.value for event in self.of(DeviceState, gpu=gpu)]


async def until(look: Callable[[], object], what: str, *, within_s: float = PATIENCE_S) -> None:
    """Wait for something that only asking again and again can see."""
    deadline = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.02)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _bus_env(bus: BusSettings | None) -> Mapping[str, str]:
    if bus is None:
        return {"MUXFLOW_BUS__SERVERS": '["nats://127.0.0.1:9"]'}  # the discard port: nobody listens
    return {
        "MUXFLOW_BUS__SERVERS": msgspec.json.encode(bus.servers).decode(),
        "MUXFLOW_BUS__CREDENTIALS": str(bus.credentials),
        "MUXFLOW_BUS__INBOX_PREFIX": bus.inbox_prefix,
    }
