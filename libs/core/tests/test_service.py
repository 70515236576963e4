"""Services as processes of their own, told where the bus is and little else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from muxflow.contracts.catalogue import DEVICES_FAULT, REQUESTS_DEVICE
from muxflow.contracts.devices import DeviceFault
from muxflow.contracts.requests import DeviceRequest
from muxflow.testing import TestServer, running_server

WATCHMAN = """
import sys
from pathlib import Path

from muxflow.bus import Outbox
from muxflow.contracts.catalogue import DEVICES_FAULT, REQUESTS_DEVICE
from muxflow.contracts.devices import DeviceFault
from muxflow.service import Service
from muxflow.settings import Settings


class Watchman(Service[Settings]):
    name = "watchman"
    needs_bus = NEEDS_BUS

    async def start(self):
        self.outbox = Outbox(Path("outbox.db"), source=self.bus.source)
        await self.outbox.open()
        self.outbox.drain_to(self.bus, on_failure=self.fail)
        await self.tell("started")
        await self.bus.read(REQUESTS_DEVICE, self.obey, bindings={"node": "n"})

    async def obey(self, message):
        await self.tell("obeyed")

    async def tell(self, text):
        fault = DeviceFault(node="n", gpu="g", kind="nvml", message=text)
        await self.outbox.put(DEVICES_FAULT, fault, node="n", gpu="g")

    async def stop(self, received):
        await self.outbox.close()


Watchman.main(Settings)
"""


class Watchman:
    """The service above, in a directory of its own; what it logs is kept."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, object]] = []

    async def logged(self, event: str) -> None:
        assert self.process.stderr is not None
        async with asyncio.timeout(20):
            while not any(line["event"] == event for line in self.lines):
                line = await self.process.stderr.readline()
                assert line, f"ended without {event!r}: {self.lines}"
                self.lines.append(json.loads(line))

    async def stopped(self) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@contextlib.asynccontextmanager
async def watchman(directory: Path, url: str, *, needs_bus: bool) -> AsyncIterator[Watchman]:
    program = directory / "watchman.py"
    program.write_text(WATCHMAN.replace("NEEDS_BUS", repr(needs_bus)))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        cwd=directory,
        env={**os.environ, "MUXFLOW_BUS__SERVERS": json.dumps([url])},
        stderr=asyncio.subprocess.PIPE,
    )
    service = Watchman(process)
    try:
        yield service
    finally:
        await service.stopped()


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    """A provisioned server that is down at first."""
    async with running_server() as running:
        await running.kill()
        yield running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_service_that_needs_no_bus_works_before_there_is_one_and_catches_up(
    server: TestServer, tmp_path: Path
) -> None:
    async with watchman(tmp_path, server.url, needs_bus=False) as service:
        await service.logged("started")
        await server.start()
        async with await server.connect() as bus:
            told: list[str] = []
            await bus.read(DEVICES_FAULT, lambda message: told.append(message.event.message), start="all")
            await bus.publish(REQUESTS_DEVICE, DeviceRequest(node="n", gpu="g", enabled=False), node="n", gpu="g")
            await until(lambda: told == ["started", "obeyed"])


async def test_a_service_that_needs_the_bus_waits_for_it(server: TestServer, tmp_path: Path) -> None:
    async with watchman(tmp_path, server.url, needs_bus=True) as service:
        await service.logged("no connection to the bus, trying again")
        assert not (tmp_path / "outbox.db").exists()
        await server.start()
        await service.logged("started")


@pytest.mark.parametrize("needs_bus", [True, False])
async def test_a_service_stops_cleanly_while_the_bus_is_away(
    server: TestServer, tmp_path: Path, needs_bus: bool
) -> None:
    async with watchman(tmp_path, server.url, needs_bus=needs_bus) as service:
        await service.logged("no connection to the bus, trying again")
        if not needs_bus:
            await service.logged("started")
        assert await service.stopped() == 0


async def test_what_was_told_while_the_bus_was_away_is_told_by_the_next_process(
    server: TestServer, tmp_path: Path
) -> None:
    async with watchman(tmp_path, server.url, needs_bus=False) as service:
        await service.logged("started")
    await server.start()
    async with await server.connect() as bus:
        told: list[DeviceFault] = []
        await bus.read(DEVICES_FAULT, lambda message: told.append(message.event), start="all")
        async with watchman(tmp_path, server.url, needs_bus=False):
            await until(lambda: len(told) == 2)
    assert len({fault.id for fault in told}) == 2
