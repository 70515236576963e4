"""What the device machine remembers from one stimulus to the next."""

from __future__ import annotations

from typing import Final

import msgspec

from muxflow.contracts import DeviceCondition
from muxflow_decisions.device.budget import BudgetMemory
from muxflow_decisions.device.gate import FROZEN, Gate
from muxflow_decisions.device.instructions import Instruction
from muxflow_decisions.device.limits import Latch
from muxflow_decisions.device.policy import DevicePolicy

_SECOND_NS: Final = 1_000_000_000
STORY_LENGTH: Final = 32
"""Changes that a memory keeps."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a device's story."""

    time_ns: int
    state: DeviceCondition
    epoch: int
    stimulus: str
    cause: str


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True):
    """State of one device. All times are by the monotonic clock that `advance` is driven with.

    A new monitor begins with `DeviceMemory(epoch=…)`, the epoch that it found on the device page, or with its
    predecessor's memory of the same boot (it can be encoded), and gives `MonitorStarted` first in both cases.
    """

    condition: DeviceCondition = DeviceCondition.INIT
    hard: bool = False
    """Overlimit or Disabled in which nothing may trickle."""
    cause: str = "nobody watches the device"
    epoch: int = 0
    since_ns: int = 0
    """When the condition was entered."""
    read_ns: int | None = None
    """When the last sample was taken; None before this monitor's first."""
    calm_ns: int | None = None
    """Since when no limit has held, as far as samples prove it; None while one does."""
    calm_owed_ns: int = 0
    """How long it must be calm before the device admits again after an Overlimit; 0: no Overlimit is open."""
    overlimits: tuple[int, ...] = ()
    """When it recently went into Overlimit."""
    lost: bool = False
    """The GPU does not answer."""
    blind_ns: int | None = None
    """When somebody was last told that something cannot be seen; None: never."""
    latches: dict[str, Latch] = {}
    """Limits that hold or are on their way to it, by `Limit.key`."""
    budget: BudgetMemory = BudgetMemory()
    gate: Gate = FROZEN
    """The gate that was last set."""
    story: tuple[Change, ...] = ()

    def calm_needed_ns(self, policy: DevicePolicy) -> int:
        """How long it must be calm to leave the present state for a better one."""
        if self.condition is DeviceCondition.UNHEALTHY:
            return int(policy.relax_s * _SECOND_NS)
        return max(self.calm_owed_ns, int(policy.settle_s * _SECOND_NS))


class Outcome(msgspec.Struct, frozen=True):
    """Result of one step."""

    memory: DeviceMemory
    """The very object passed in when nothing changed."""
    instructions: tuple[Instruction, ...] = ()
