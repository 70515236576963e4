"""What every event has, and the one way events become bytes and back."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

# Units and ranges that many fields share. Names of fields carry the unit; these carry the range.
Count = Annotated[int, Meta(ge=0, le=2**53)]
"""A non-negative integer that every JSON reader can hold exactly."""
TimeNs = Annotated[int, Meta(ge=0, le=2**63 - 1, description="Nanoseconds since 1970-01-01 UTC; 0 means not given.")]
"""A point in time, by the clock of whoever wrote it."""
Bytes = Annotated[int, Meta(ge=0, le=2**53)]
"""A size in bytes."""
Percent = Annotated[float, Meta(ge=0, le=100)]
"""0 to 100."""
Permille = Annotated[int, Meta(ge=0, le=1000)]
"""0 to 1000, in thousandths."""
ThreadPercentage = Annotated[int, Meta(ge=1, le=100)]
"""CUDA_MPS_ACTIVE_THREAD_PERCENTAGE: the share of SMs a client's contexts may use, 1 to 100."""
Milliseconds = Annotated[float, Meta(ge=0)]
"""A non-negative duration in milliseconds."""
Seconds = Annotated[float, Meta(ge=0, le=10**9)]
"""A non-negative duration in seconds."""


Text = Annotated[str, Meta(max_length=4096)]
"""Free text for people: bounded, so that no event grows too large to be published."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every message on the bus.

    Publishers of ours fill all three; for a plain NATS client that leaves them out the receiver fills them in from what
    the server recorded, so that a redelivered message gets the same `id` again.
    """

    id: Annotated[str, Meta(max_length=1024)] = ""
    """Unique identity of this event, also its ``Nats-Msg-Id``: handlers are idempotent by it."""
    source: Annotated[str, Meta(max_length=1024)] = ""
    """Who published it: ``<service>@<host>``, or the client's own name."""
    time_ns: TimeNs = 0
    """When it was made, by the publisher's clock. Never used to decide what is safe: clocks may be wrong."""


E = TypeVar("E", bound=Event)

_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_DECODERS: dict[type[Event], msgspec.json.Decoder[Any]] = {}


def encode(event: msgspec.Struct) -> bytes:
    """Encode as JSON, keys sorted, so that equal events have equal bytes."""
    return _ENCODER.encode(event)


def decode(data: bytes, kind: type[E]) -> E:
    """Decode one event.

    Raises `msgspec.ValidationError` (JSON, but not this event; the message ends with the path of the field) or its base
    `msgspec.DecodeError` (not JSON at all).
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
    event: E = decoder.decode(data)
    return event


def complete(event: E, *, id: str, source: str, time_ns: int) -> E:  # noqa: A002 - the field's own name
    """Fill in whichever of `id`, `source` and `time_ns` the publisher left out."""
    if event.id and event.source and event.time_ns:
        return event
    return msgspec.structs.replace(
        event,
        id=event.id or id,
        source=event.source or source,
        time_ns=event.time_ns or time_ns,
    )
