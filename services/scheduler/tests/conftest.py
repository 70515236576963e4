"""A real server and a real scheduler process; the node is scripted by the test, over the real bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobs_over_bus import OUTCOMES, Outcomes
from muxflow.bus import Bus
from muxflow.bus.credentials import Principal
from muxflow.contracts import Role
from scripted_node import NODE, ScriptedNode
from world import World


@pytest.fixture
def env() -> dict[str, str]:
    """Settings of the scheduler: nobody measures here, nobody predicts. Modules about that have their own."""
    return {"MUXFLOW_SCHEDULER__PROFILING": "false", "MUXFLOW_SCHEDULER__PREDICTION": "false"}


@pytest.fixture
async def world(tmp_path: Path, env: dict[str, str]) -> AsyncIterator[World]:
    world = World(tmp_path, nodes={NODE: 0}, env=env)
    try:
        await world.start_servers()
        world.add_scheduler()
        yield world
    finally:
        await world.stop()


@pytest.fixture
async def user(world: World) -> AsyncIterator[Bus]:
    async with await world.connect(Principal(role=Role.USER, bound_to="default")) as bus:
        yield bus


@pytest.fixture
async def operator(world: World) -> AsyncIterator[Bus]:
    async with await world.connect(Principal(role=Role.OPERATOR)) as bus:
        yield bus


@pytest.fixture
async def node(world: World) -> AsyncIterator[ScriptedNode]:
    async with await world.connect(Principal(role=Role.NODE, bound_to=NODE)) as bus:
        node = ScriptedNode(bus, gpus=2)
        await node.join()
        yield node
        await node.fall_silent()


@pytest.fixture
async def watched(world: World) -> AsyncIterator[ScriptedNode]:
    """A node whose monitor has told nothing yet."""
    async with await world.connect(Principal(role=Role.NODE, bound_to=NODE)) as bus:
        node = ScriptedNode(bus, gpus=2, watched=True)
        await node.join()
        yield node
        await node.fall_silent()


@pytest.fixture
async def outcomes(operator: Bus) -> Outcomes:
    outcomes = Outcomes()
    await operator.read(OUTCOMES, outcomes.take, start="all")
    return outcomes
