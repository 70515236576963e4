"""Simulated GPUs, a real server with credentials, and a monitor process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from muxflow.bus import Bus
from muxflow.bus.credentials import Principal
from muxflow.contracts import Role
from muxflow.testing import TestServer, running_server
from muxflow_simgpu import SimulatedMachine
from simulated_gpus import simulated
from watched_node import NODE, SERVICE, MakeNode, WatchedNode


@pytest.fixture
def machine() -> Iterator[SimulatedMachine]:
    """One T4 and one H200."""
    with simulated("T4", "H200") as machine:
        yield machine


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    principals = (
        Principal(role=Role.NODE, bound_to=NODE),
        Principal(role=Role.OPERATOR),
        Principal(role=Role.ONLINE, bound_to=SERVICE),
    )
    async with running_server(principals=principals) as server:
        yield server


@pytest.fixture
async def operator(server: TestServer) -> AsyncIterator[Bus]:
    async with await server.connect(Role.OPERATOR) as bus:
        yield bus


@pytest.fixture
def lonely(machine: SimulatedMachine, tmp_path: Path) -> Iterator[WatchedNode]:
    """A monitor that never finds its bus."""
    node = WatchedNode(tmp_path, machine, None)
    yield node
    node.close()


@pytest.fixture
def make_node(machine: SimulatedMachine, server: TestServer, tmp_path: Path) -> Iterator[MakeNode]:
    """Make the monitor with some settings, and start it."""
    made: list[WatchedNode] = []

    def make(**settings: Any) -> WatchedNode:
        node = WatchedNode(tmp_path, machine, server.settings(Role.NODE, NODE), **settings)
        made.append(node)
        node.start()
        return node

    yield make
    for node in made:
        node.close()
