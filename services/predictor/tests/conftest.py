from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from muxflow.testing import running_server
from predicting_room import ROLES, Room


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_server(tmp_path, principals=ROLES))
        room = Room(server, stack)
        await room.open()
        yield room
        await room.stop()
