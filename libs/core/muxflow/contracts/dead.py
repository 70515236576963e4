"""Messages that could not be handled."""

from __future__ import annotations

from muxflow.contracts.event import Count, Event


class DeadLetter(Event, frozen=True, kw_only=True):
    """A message that a service could not handle, kept with all that is needed to send it again."""

    service: str
    subject: str
    reason: str
    data: bytes
    """The original payload, base64 in JSON."""
    headers: dict[str, str] = {}
    stream: str | None = None
    stream_sequence: Count | None = None
    deliveries: Count = 1
