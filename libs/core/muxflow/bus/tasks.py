"""Ending background tasks."""

from __future__ import annotations

import asyncio
from typing import Any, Final

_AGAIN_S: Final = 0.1


async def end(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task until it has ended.

    Once is not enough: nats-py swallows a cancellation while it flushes, and so does `asyncio.wait_for` before
    Python 3.12 when what it waits for ends in the same moment.
    """
    if task is None:
        return
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_AGAIN_S)
