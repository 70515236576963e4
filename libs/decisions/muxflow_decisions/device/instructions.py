"""What a step of the device machine asks its caller to do, in this order."""

from __future__ import annotations

from typing import Literal

import msgspec

from muxflow.contracts import DeviceCondition
from muxflow_decisions.device.gate import Gate

Severity = Literal["info", "warning", "critical"]
"""As in `DeviceAlert.severity`."""


class SetGate(msgspec.Struct, frozen=True, kw_only=True):
    """Write this gate to the device page, with the epoch. Given only when the word changes."""

    gate: Gate
    epoch: int


class Tell(msgspec.Struct, frozen=True, kw_only=True):
    """The state changed: write it to the device page, publish `DeviceState`."""

    previous: DeviceCondition | None
    """None for the first."""
    state: DeviceCondition
    hard: bool
    """Overlimit or Disabled of the kind in which nothing trickles: everything is evicted at once, and nothing saved."""
    cause: str
    """Which reading crossed which threshold, with numbers; at most 150 bytes of UTF-8, so that the page holds it."""
    epoch: int
    """Number of the change; it grows by one with each."""
    since_ns: int
    """When the state was entered, by the caller's monotonic clock."""


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """The device needs a person: publish `DeviceAlert`."""

    severity: Severity
    message: str


Instruction = SetGate | Tell | Alert
