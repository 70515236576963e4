"""Questions about a stream as a whole, and the deletion of what ended long ago. For the scheduler and operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from muxflow.contracts import Subject

if TYPE_CHECKING:
    from muxflow.bus.bus import Bus

_API_TIMEOUT_S: Final = 30.0


async def subjects_in(bus: Bus, subject: Subject) -> set[str]:
    """List the concrete subjects of this kind that have a stored message.

    Raises `muxflow.bus.requests.ApiError` and what a request raises.
    """
    found: set[str] = set()
    while True:
        answer = await bus.requests.api(
            f"STREAM.INFO.{subject.stream}",
            {"subjects_filter": subject.pattern(), "offset": len(found)},
            timeout_s=_API_TIMEOUT_S,
        )
        page = answer["state"].get("subjects") or {}
        found |= page.keys()
        if not page or len(found) >= answer.get("total", 0):
            return found


async def purge(bus: Bus, stream: str, pattern: str) -> int:
    """Delete every message of a stream whose subject matches; returns how many."""
    answer = await bus.requests.api(f"STREAM.PURGE.{stream}", {"filter": pattern}, timeout_s=_API_TIMEOUT_S)
    return int(answer["purged"])
