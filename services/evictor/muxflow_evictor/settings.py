"""Settings of the evictor: section ``[evictor]``."""

from __future__ import annotations

import socket
from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.settings import Settings
from muxflow_decisions.eviction import EvictionPolicy


class EvictorSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is the evictor's own."""

    node: Annotated[str, Meta(min_length=1, max_length=253)] = msgspec.field(default_factory=socket.gethostname)
    """Name of this node; default: its host name."""
    state_dir: Annotated[str, Meta(min_length=1)] = "/var/lib/muxflow/evictor"
    """Evictions under way and alerts that the bus has not taken yet. On a local disk; used by one evictor."""
    run_dir: Annotated[str, Meta(min_length=1)] | None = None
    """Run directory of the node, the same for monitor, evictor and executor; null: the one that they agree on."""
    poll_ms: Annotated[int, Meta(ge=1, le=1000)] = 20
    """How often the device pages are looked at."""
    policy: EvictionPolicy = EvictionPolicy()
    """When a device is to be cleared."""


class EvictorSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the evictor reads."""

    evictor: EvictorSection = msgspec.field(default_factory=EvictorSection)
