from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from executing_node import Node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A node that is ready to start attempts; afterwards nothing of it is left."""
    node = Node(tmp_path)
    await node.runner.open()
    yield node
    await node.end()
