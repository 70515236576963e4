"""How a process reaches the bus."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

PositiveSeconds = Annotated[float, Meta(gt=0, le=3600)]


class BusSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Section ``[bus]`` of every service's settings."""

    servers: tuple[str, ...] = ("nats://127.0.0.1:4222",)
    """Tried in turn, for ever."""
    credentials: str | None = None
    """Path of a file with an NKey seed; null connects without credentials."""
    inbox_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_=-]+(\.[A-Za-z0-9_=-]+)*$")] = "_INBOX"
    """Where answers arrive. Permissions give each role its own: see `muxflow.bus.permissions.inbox_prefix`."""
    tls_ca: str | None = None
    """Path of the certificates to trust. Setting any ``tls_`` path turns TLS on."""
    tls_cert: str | None = None
    tls_key: str | None = None
    connect_timeout_s: PositiveSeconds = 5.0
    """One attempt to connect."""
    publish_timeout_s: PositiveSeconds = 5.0
    """One try of a publish or request; publishes are tried again under the same identity."""
    reconnect_wait_s: PositiveSeconds = 0.1
    """First pause between attempts to connect; doubles to `reconnect_wait_max_s`."""
    reconnect_wait_max_s: PositiveSeconds = 1.0
    ping_interval_s: PositiveSeconds = 2.0
    """How often a silent connection is checked."""
    ping_timeout_s: PositiveSeconds = 4.0
    """A connection that has been silent and leaves a check unanswered for so long is given up and made anew."""
    max_outstanding: Annotated[int, Meta(ge=1, le=65536)] = 1024
    """Publishes that may wait for their ack at once; more of them wait for a place."""
