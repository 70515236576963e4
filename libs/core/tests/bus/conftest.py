from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from muxflow.bus import Bus
from muxflow.testing import TestServer, running_server


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    """A provisioned server of this test's own."""
    async with running_server() as running:
        yield running


@pytest.fixture
async def bus(server: TestServer) -> AsyncIterator[Bus]:
    async with await server.connect(source="tester@here") as connected:
        yield connected
