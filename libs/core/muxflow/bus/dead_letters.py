"""Dead letters: what a service could not handle, kept with all that is needed to send it again."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

from muxflow.bus.message import RawMessage
from muxflow.contracts import DeadLetter
from muxflow.contracts.catalogue import DEAD

if TYPE_CHECKING:
    from muxflow.bus.bus import Bus

_ENVELOPE_BYTES: Final = 8192


async def bury(bus: Bus, service: str, raw: RawMessage, reason: str) -> None:
    """Publish a message as a dead letter of a service; returns when it is stored.

    A payload that would not fit stays behind: the letter names the stream and the sequence where it is.
    Raises `PublishRefused`.
    """
    at = raw.delivery
    data = raw.data
    fits = bus.connection.max_payload - _ENVELOPE_BYTES - len(reason) - sum(map(len, raw.headers.values()))
    if len(base64.b64encode(data)) > fits:
        reason += f" (the payload of {len(data)} bytes is too large for a letter: see the stream)"
        data = b""
    letter = DeadLetter(
        id=f"dead:{service}:{at.stream}:{at.stream_sequence}" if at else "",
        service=service,
        subject=raw.address,
        reason=reason[:4096],
        data=data,
        headers=dict(raw.headers),
        stream=at.stream if at else None,
        stream_sequence=at.stream_sequence if at else None,
        deliveries=raw.deliveries,
    )
    await bus.publish(DEAD, letter, service=service)
