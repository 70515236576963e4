"""What can happen to a device."""

from __future__ import annotations

import re

import msgspec

from muxflow_decisions.device.readings import Readings


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """A sample was taken."""

    readings: Readings


class Disable(msgspec.Struct, frozen=True, kw_only=True):
    """An operator wants no offline work on the device."""

    reason: str = ""


class Enable(msgspec.Struct, frozen=True, kw_only=True):
    """An operator allows offline work again."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something went wrong on the device: an XID, a crash of the MPS server, NVML errors."""

    kind: str
    """As in `DeviceFault.kind`: ``xid``, ``mps``, ``nvml``, ``clock``."""
    xid: int | None = None
    message: str = ""
    fatal: bool
    """Whether work on the device is lost or in danger: then offline work stops at once and is evicted."""


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """The GPU does not answer any more (fell off the bus, XID 79)."""

    message: str = ""


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """A lost GPU answers again."""


class MonitorStarted(msgspec.Struct, frozen=True, kw_only=True):
    """The process that watches the device is a new one: what was known before may be out of date."""


Stimulus = Read | Disable | Enable | Fault | Lost | Restored | MonitorStarted


def name(stimulus: Stimulus) -> str:
    """Name a stimulus as stories and logs do: ``monitor-started``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(stimulus).__name__).lower()
