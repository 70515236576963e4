"""How a job came to where it is."""

from __future__ import annotations

from datetime import UTC, datetime

from muxflow.contracts import JobRecord, Transition

STORY_LENGTH = 32
"""Transitions that a record keeps."""
REASON_LENGTH = 1000
"""Characters of a reason that are kept: users and nodes write into reasons, and records and events are bounded."""
DETAIL_LENGTH = 200
"""Characters of a reason that a line of the story keeps."""


def shortened(text: str, length: int = REASON_LENGTH) -> str:
    """Cut a text for people to so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def told(record: JobRecord, transition: Transition) -> tuple[Transition, ...]:
    """Add one transition, dropping the oldest when there are too many."""
    return (*record.story[-(STORY_LENGTH - 1) :], transition)


def story(record: JobRecord) -> list[str]:
    """Tell the kept transitions, one line each, oldest first."""
    return [_line(transition) for transition in record.story]


def _line(transition: Transition) -> str:
    seconds, nanoseconds = divmod(transition.time_ns, 1_000_000_000)
    when = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{nanoseconds // 1_000_000:03d}Z"
    return f"{when}  {transition.state.value:<9}  {transition.stimulus}: {transition.detail}"
