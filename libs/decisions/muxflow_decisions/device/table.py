"""The states of a device's offline side, and every way from one to another, as data.

The first row that fits a state, a trigger and what holds at the moment is taken; where none fits, the state stays.
`picture` draws this table.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from muxflow.contracts import DeviceCondition


class Trigger(StrEnum):
    """What happened: the kinds of stimuli."""

    READ = "a sample"
    FAULT = "a fatal fault"
    LOST = "the GPU is lost"
    DISABLE = "an operator disables"
    ENABLE = "an operator enables"
    MONITOR = "a monitor starts"


class Guard(StrEnum):
    """What must hold."""

    ALWAYS = ""
    HARD = "a hard limit holds"
    SOFT_HARD = "a hard limit holds, and it is not hard yet"
    SOFT = "it is not hard yet"
    OVERLIMIT = "an Overlimit holds"
    UNHEALTHY = "an unhealthy limit holds, and no calm is owed"
    CALM = "calm for long enough"
    GONE = "the GPU is still lost"


class Effect(StrEnum):
    """What else changes."""

    ADMIT = "admit, open under the law"
    SLOW = "admit nobody, slow what is there"
    FREEZE = "freeze; a saving job trickles"
    FREEZE_HARD = "freeze all"
    HARDEN = "stop the trickle too"
    FORBID = "evict; a saving job trickles"
    FORBID_HARD = "freeze all, evict"
    START = "freeze until readings are known"


class Row(msgspec.Struct, frozen=True):
    """One way."""

    state: DeviceCondition
    trigger: Trigger
    guard: Guard
    next: DeviceCondition
    effect: Effect


_INIT, _HEALTHY, _UNHEALTHY = DeviceCondition.INIT, DeviceCondition.HEALTHY, DeviceCondition.UNHEALTHY
_OVERLIMIT, _DISABLED = DeviceCondition.OVERLIMIT, DeviceCondition.DISABLED

TABLE: Final = (
    Row(_INIT, Trigger.READ, Guard.HARD, _OVERLIMIT, Effect.FREEZE_HARD),
    Row(_INIT, Trigger.READ, Guard.OVERLIMIT, _OVERLIMIT, Effect.FREEZE),
    Row(_INIT, Trigger.READ, Guard.UNHEALTHY, _UNHEALTHY, Effect.SLOW),
    Row(_INIT, Trigger.READ, Guard.CALM, _HEALTHY, Effect.ADMIT),
    Row(_HEALTHY, Trigger.READ, Guard.HARD, _OVERLIMIT, Effect.FREEZE_HARD),
    Row(_HEALTHY, Trigger.READ, Guard.OVERLIMIT, _OVERLIMIT, Effect.FREEZE),
    Row(_HEALTHY, Trigger.READ, Guard.UNHEALTHY, _UNHEALTHY, Effect.SLOW),
    Row(_UNHEALTHY, Trigger.READ, Guard.HARD, _OVERLIMIT, Effect.FREEZE_HARD),
    Row(_UNHEALTHY, Trigger.READ, Guard.OVERLIMIT, _OVERLIMIT, Effect.FREEZE),
    Row(_UNHEALTHY, Trigger.READ, Guard.CALM, _HEALTHY, Effect.ADMIT),
    Row(_OVERLIMIT, Trigger.READ, Guard.SOFT_HARD, _OVERLIMIT, Effect.HARDEN),
    Row(_OVERLIMIT, Trigger.READ, Guard.CALM, _HEALTHY, Effect.ADMIT),
    *(
        Row(state, trigger, Guard.ALWAYS, _OVERLIMIT, Effect.FREEZE_HARD)
        for state in (_INIT, _HEALTHY, _UNHEALTHY)
        for trigger in (Trigger.FAULT, Trigger.LOST)
    ),
    *(Row(_OVERLIMIT, trigger, Guard.SOFT, _OVERLIMIT, Effect.HARDEN) for trigger in (Trigger.FAULT, Trigger.LOST)),
    *(Row(state, Trigger.DISABLE, Guard.ALWAYS, _DISABLED, Effect.FORBID) for state in (_INIT, _HEALTHY, _UNHEALTHY)),
    Row(_OVERLIMIT, Trigger.DISABLE, Guard.SOFT, _DISABLED, Effect.FORBID),
    Row(_OVERLIMIT, Trigger.DISABLE, Guard.ALWAYS, _DISABLED, Effect.FORBID_HARD),
    Row(_DISABLED, Trigger.READ, Guard.SOFT_HARD, _DISABLED, Effect.HARDEN),
    *(Row(_DISABLED, trigger, Guard.SOFT, _DISABLED, Effect.HARDEN) for trigger in (Trigger.FAULT, Trigger.LOST)),
    Row(_DISABLED, Trigger.ENABLE, Guard.GONE, _OVERLIMIT, Effect.FREEZE_HARD),
    Row(_DISABLED, Trigger.ENABLE, Guard.ALWAYS, _INIT, Effect.START),
    *(
        Row(state, Trigger.MONITOR, Guard.ALWAYS, _INIT, Effect.START)
        for state in (_INIT, _HEALTHY, _UNHEALTHY, _OVERLIMIT)
    ),
    Row(_DISABLED, Trigger.MONITOR, Guard.SOFT, _DISABLED, Effect.FORBID),
    Row(_DISABLED, Trigger.MONITOR, Guard.ALWAYS, _DISABLED, Effect.FORBID_HARD),
)
