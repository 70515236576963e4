"""The evictor's decision: when all offline attempts are to leave a device.

The evictor looks at each device again and again, and `advance` says whether to order now. Orders are idempotent for the
executor, so a repetition does no harm; it only must not come so often that it is a load.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from muxflow.contracts import DeviceCondition

_SECOND_NS = 1_000_000_000
_MOST_DOUBLINGS = 32


class EvictionPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the decision."""

    evict_after_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    """How long Overlimit lasts before frozen jobs are evicted: a shorter burst costs them time, not their place."""
    repeat_first_s: Annotated[float, Meta(ge=0.01, le=600)] = 1.0
    """Wait after an order has failed or is carried out, while its reason lasts; it doubles with each further one."""
    repeat_longest_s: Annotated[float, Meta(ge=0.01, le=3600)] = 60.0


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What the evictor sees of a device: its page, or the last event while the page says nothing."""

    condition: DeviceCondition
    since_ns: int
    """When the condition was entered, by the clock that `advance` is driven with."""
    hard: bool = False
    epoch: int
    """Number of the change; only compared for equality."""
    cause: str
    fresh: bool
    """Whether whoever says so lives. What a dead monitor said last evicts nobody: gates freeze by themselves."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The device was looked at."""

    sight: Sight


class CarriedOut(msgspec.Struct, frozen=True, kw_only=True):
    """The executor has carried out the order of this epoch: nothing is left of the attempts that were there."""

    epoch: int


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The order of this epoch did not come through, or nobody tells what became of it."""

    epoch: int


OrderStimulus = Look | CarriedOut | Failed


class Evict(msgspec.Struct, frozen=True, kw_only=True):
    """Order that all attempts leave the device. `CarriedOut` or `Failed` must follow."""

    hard: bool
    """There is no time to save."""
    cause: str
    epoch: int
    repeat: int
    """How many orders there were for the same epoch before."""


class OrderMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of one device. A restarted evictor begins with a new one."""

    seen_epoch: int | None = None
    """The epoch that was last seen."""
    seen_ns: int = 0
    """When it was first seen. A device's condition is at least as old, whatever its page says of the time."""
    epoch: int | None = None
    """The epoch that the last order was for."""
    orders: int = 0
    """How many there were for it."""
    outstanding: bool = False
    """The last one has no answer yet."""
    not_before_ns: int = 0
    """The next one for the same epoch comes no earlier."""


class OrderOutcome(msgspec.Struct, frozen=True):
    """Result of one step."""

    memory: OrderMemory
    order: Evict | None = None


def advance(memory: OrderMemory, stimulus: OrderStimulus, *, now_ns: int, policy: EvictionPolicy) -> OrderOutcome:
    """Take one step. `now_ns` is monotonic, of the clock in which `Sight.since_ns` is given."""
    match stimulus:
        case CarriedOut() | Failed():
            return OrderOutcome(_answered(memory, stimulus.epoch, now_ns, policy))
        case Look(sight=sight):
            return _look(memory, sight, now_ns, policy)


def validate(memory: OrderMemory) -> None:
    """Raise AssertionError if a rule is broken."""
    if (memory.epoch is None) != (memory.orders == 0):
        raise AssertionError("an epoch from the first order on")
    if memory.outstanding and not memory.orders:
        raise AssertionError("an answer is awaited and nothing was ordered")


def _look(memory: OrderMemory, sight: Sight, now_ns: int, policy: EvictionPolicy) -> OrderOutcome:
    if memory.seen_epoch != sight.epoch:
        memory = replace(memory, seen_epoch=sight.epoch, seen_ns=now_ns)
    since_ns = min(sight.since_ns, memory.seen_ns)
    patience_ns = _patience_ns(sight, policy)
    if patience_ns is None:
        return OrderOutcome(memory)
    again = memory.epoch == sight.epoch
    if again and memory.outstanding:
        return OrderOutcome(memory)
    due_ns = since_ns + patience_ns
    if again:
        due_ns = max(due_ns, memory.not_before_ns)
    if now_ns < due_ns:
        return OrderOutcome(memory)
    orders = memory.orders if again else 0
    order = Evict(hard=_hard(sight), cause=_cause(sight, now_ns - since_ns), epoch=sight.epoch, repeat=orders)
    return OrderOutcome(replace(memory, epoch=sight.epoch, orders=orders + 1, outstanding=True, not_before_ns=0), order)


def _answered(memory: OrderMemory, epoch: int, now_ns: int, policy: EvictionPolicy) -> OrderMemory:
    if memory.epoch != epoch or not memory.outstanding:
        return memory
    doublings = min(memory.orders - 1, _MOST_DOUBLINGS)
    wait_s = min(policy.repeat_first_s * 2**doublings, policy.repeat_longest_s)
    return replace(memory, outstanding=False, not_before_ns=now_ns + int(wait_s * _SECOND_NS))


def _patience_ns(sight: Sight, policy: EvictionPolicy) -> int | None:
    """How long what is seen may last before the attempts are to go; None: for ever."""
    if not sight.fresh:
        return None
    if sight.condition is DeviceCondition.DISABLED or _hard(sight):
        return 0
    if sight.condition is DeviceCondition.OVERLIMIT:
        return int(policy.evict_after_s * _SECOND_NS)
    return None


def _hard(sight: Sight) -> bool:
    return sight.hard and sight.condition in (DeviceCondition.OVERLIMIT, DeviceCondition.DISABLED)


def _cause(sight: Sight, lasted_ns: int) -> str:
    if sight.condition is DeviceCondition.DISABLED:
        return sight.cause
    return f"{sight.cause}; {'hard ' if sight.hard else ''}overlimit for {lasted_ns / _SECOND_NS:.1f} s"
