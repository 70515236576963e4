from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from executing_node import Node
from muxflow_device.rundir import RunDirectory


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node that is ready to start attempts; afterwards nothing of it is left."""
    node = Node(tmp_path)
    await node.runner.open()
    yield node
    await node.end()


@pytest.fixture
def run() -> Iterator[RunDirectory]:
    """A run directory in memory, whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="mux-", dir="/dev/shm") as path:
        Path(path).chmod(0o711)
        yield RunDirectory(Path(path))
