from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from muxflow.bus import Bus
from muxflow.contracts import Durable
from muxflow.testing import TestServer, running_server

Reshape = Callable[..., Awaitable[Durable]]


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    """A provisioned server of this test's own."""
    async with running_server() as running:
        yield running


@pytest.fixture
async def bus(server: TestServer) -> AsyncIterator[Bus]:
    async with await server.connect(source="tester@here") as connected:
        yield connected


@pytest.fixture
def reshape(bus: Bus) -> Reshape:
    """Change settings of a durable for one test: shorter waits than in production."""

    async def change(durable: Durable, **settings: Any) -> Durable:
        changed = msgspec.structs.replace(durable, **settings)
        config = {
            "durable_name": changed.name,
            "ack_policy": "explicit",
            "filter_subjects": list(changed.filters),
            "ack_wait": int(changed.ack_wait_s * 1e9),
            "max_deliver": changed.max_deliver,
            "max_ack_pending": changed.max_ack_pending,
        }
        await bus.requests.api(
            f"CONSUMER.CREATE.{changed.stream}.{changed.name}",
            {"stream_name": changed.stream, "config": config},
            timeout_s=5,
        )
        return changed

    return change
