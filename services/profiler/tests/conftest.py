"""A real server with credentials, a scripted fleet, and a profiler process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from muxflow.bus import Bus
from muxflow.bus.credentials import Principal
from muxflow.contracts import Role
from muxflow.testing import TestServer, running_server
from scripted_telemetry import NODE, ProfilerProcess, Profiles, ScriptedFleet

MakeProfiler = Callable[..., Awaitable[ProfilerProcess]]


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    principals = (
        *(Principal(role=role) for role in (Role.PROFILER, Role.SCHEDULER, Role.OPERATOR)),
        Principal(role=Role.NODE, bound_to=NODE),
    )
    async with running_server(principals=principals) as server:
        yield server


@pytest.fixture
async def operator(server: TestServer) -> AsyncIterator[Bus]:
    async with await server.connect(Role.OPERATOR) as bus:
        yield bus


@pytest.fixture
async def fleet(server: TestServer) -> AsyncIterator[ScriptedFleet]:
    """One node with two GPUs that are known, and served to nobody."""
    async with (
        await server.connect(Role.NODE, NODE) as node,
        await server.connect(Role.SCHEDULER) as scheduler,
    ):
        fleet = ScriptedFleet(node, scheduler)
        await fleet.offer()
        yield fleet


@pytest.fixture
async def profiles(operator: Bus) -> Profiles:
    """What is published."""
    return await Profiles.read(operator)


@pytest.fixture
def make_profiler(server: TestServer, tmp_path: Path) -> Iterator[MakeProfiler]:
    """Make the profiler with some settings, and start it."""
    made: list[ProfilerProcess] = []

    async def make(**settings: Any) -> ProfilerProcess:
        profiler = ProfilerProcess(server, tmp_path / "profiler.log", **settings)
        made.append(profiler)
        await profiler.start()
        return profiler

    yield make
    for profiler in made:
        profiler.close()
