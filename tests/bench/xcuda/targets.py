"""What the figures are to reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec


class Target(msgspec.Struct, frozen=True):
    """A bound, which may depend on other figures."""

    bound: Callable[[Mapping[str, Any]], float]
    at_least: bool = False


def _fixed(bound: float) -> Callable[[Mapping[str, Any]], float]:
    return lambda _: bound


def _window_ms(found: Mapping[str, Any]) -> float:
    return float(found["window_us"] / 1e3)


TARGETS: Mapping[str, Target] = {
    "launch_instructions_added": Target(_fixed(60)),
    "driver_calls_per_launch_added": Target(_fixed(0.1)),
    "launch_ns_added_2threads": Target(lambda found: 2 * float(found["launch_ns_added"])),
    "alloc_free_ns_added": Target(_fixed(200)),
    "alloc_free_ns_added_5000_live": Target(_fixed(200)),
    "alloc_free_ns_added_100000_live": Target(lambda found: min(200.0, 1.5 * float(found["alloc_free_ns_added"]))),
    "stop_ms_p99": Target(lambda found: _window_ms(found) + 0.2),
    "stop_ms_p99_mixed": Target(_window_ms),
    "window_throughput_ratio": Target(_fixed(0.98), at_least=True),
    "budget_error_points": Target(_fixed(3)),
    "beacon_instructions": Target(_fixed(20)),
    "startup_ms_added": Target(_fixed(1)),
    "window_us": Target(_fixed(2000)),
}


def targets(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Hold the figures against their bounds."""
    told = {}
    for name, target in TARGETS.items():
        bound = round(target.bound(found), 3)
        reached = found[name] >= bound if target.at_least else found[name] <= bound
        told[name] = {("at_least" if target.at_least else "at_most"): bound, "reached": bool(reached)}
    return told
