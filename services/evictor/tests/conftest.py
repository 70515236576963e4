from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from evicting_node import EvictingNode


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A run directory in memory, whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="mux-", dir="/dev/shm") as path:
        Path(path).chmod(0o711)
        yield Path(path)


@pytest.fixture
async def node(tmp_path: Path, run_dir: Path) -> AsyncIterator[EvictingNode]:
    """A node with a healthy device, an executor that can be scripted, and the bus; the evictor is not started yet."""
    node = EvictingNode(tmp_path, run_dir)
    try:
        await node.open()
        yield node
    finally:
        await node.close()
