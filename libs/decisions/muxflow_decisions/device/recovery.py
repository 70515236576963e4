"""What has to happen before a device takes new work again, in words for people, with the numbers."""

from __future__ import annotations

from typing import Final

from muxflow.contracts import DeviceCondition
from muxflow_decisions.device.limits import Limit, holding
from muxflow_decisions.device.memory import DeviceMemory
from muxflow_decisions.device.policy import DevicePolicy

_SECOND_NS: Final = 1_000_000_000


def recovery(memory: DeviceMemory, policy: DevicePolicy) -> str:
    """Say what a device waits for; empty while it is healthy."""
    if memory.condition is DeviceCondition.HEALTHY:
        return ""
    if memory.condition is DeviceCondition.DISABLED:
        return "an operator enables it"
    first = ["the GPU answers again"] if memory.lost else []
    strictest: dict[str, Limit] = {}
    for limit, _ in holding(memory.latches):
        other = strictest.setdefault(limit.name, limit)
        if (limit.leave(policy) > other.leave(policy)) == limit.below:
            strictest[limit.name] = limit
    clear = [_cleared(limit, policy) for limit in strictest.values()]
    calm = f"calm for {memory.calm_needed_ns(policy) / _SECOND_NS:.1f} s"
    return ", then ".join([*first, *([" and ".join(clear)] if clear else []), calm])


def _cleared(limit: Limit, policy: DevicePolicy) -> str:
    """Name the reading and where it is clear: limits are named after their crossing, such as ``memory exhausted``."""
    reading = limit.name
    for crossing in (" exhausted", " taken", " unknown"):
        reading = reading.removesuffix(crossing)
    if limit.blind:
        return f"{reading} is known"
    return f"{reading} is {'above' if limit.below else 'below'} {limit.leave(policy):g} {limit.unit}"
