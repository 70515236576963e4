"""Questions about a stream as a whole, and the deletion of what ended long ago. For the scheduler and operators."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from muxflow.bus.errors import BusError, RequestTimeout
from muxflow.contracts import Durable, Subject

if TYPE_CHECKING:
    from muxflow.bus.bus import Bus

_TRY_S: Final = 2.0
_DEADLINE_S: Final = 30.0
_PAUSE_S: Final = 0.1


async def subjects_in(bus: Bus, subject: Subject) -> set[str]:
    """List the concrete subjects of this kind that have a stored message.

    Raises `BusError` when there was no answer within 30 s.
    """
    found: set[str] = set()
    while True:
        answer = await _ask(
            bus, f"STREAM.INFO.{subject.stream}", {"subjects_filter": subject.pattern(), "offset": len(found)}
        )
        page = answer["state"].get("subjects") or {}
        found |= page.keys()
        if not page or len(found) >= answer.get("total", 0):
            return found


async def handled_up_to(bus: Bus, durable: Durable) -> int:
    """Tell up to which sequence of its stream everything that a durable delivers has been acked."""
    answer = await _ask(bus, f"CONSUMER.INFO.{durable.stream}.{durable.name}", {})
    return int(answer["ack_floor"]["stream_seq"])


async def purge(bus: Bus, stream: str, pattern: str, *, up_to: int) -> int:
    """Delete the messages of a stream whose subject matches, up to this sequence; returns how many."""
    answer = await _ask(bus, f"STREAM.PURGE.{stream}", {"filter": pattern, "seq": up_to + 1})
    return int(answer["purged"])


async def _ask(bus: Bus, subject: str, request: dict[str, Any]) -> dict[str, Any]:
    """Ask again while a cluster elects: a stream without a leader does not answer at all."""
    until = time.monotonic() + _DEADLINE_S
    while True:
        await bus.connection.wait_connected()
        try:
            return await bus.requests.api(subject, request, timeout_s=_TRY_S)
        except BusError as error:
            if time.monotonic() > until:
                raise
            if not isinstance(error, RequestTimeout):
                await asyncio.sleep(_PAUSE_S)
