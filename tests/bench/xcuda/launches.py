"""What a launch costs its program: instructions, calls to the driver, time. On a driver that does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xcuda.node import Node, idle_instructions, idle_run, say

CALLS = (
    "cuLaunchKernel",
    "cuLaunchKernel_ptsz",
    "cuLaunchKernelEx",
    "cuLaunchCooperativeKernel",
    "cuGraphLaunch",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
)
FIRST = CALLS[0]
LENGTHS_US = (0, 5, 20, 200)
"""Of kernels. The window counts 1 µs at least; the longer they are, the more often a group of launches ends."""
NOTHING_US, SHORT_US = LENGTHS_US[:2]
_COUNTED = 10_000


def per_launch(call: str, takes_us: int, extra: Mapping[str, str]) -> float:
    """Count the instructions of a launch, once everything is learned.

    The lesser of two counts: threads take turns under valgrind, and one whose turn it is may wait for another in vain.
    """
    program = ("bench_launches", call, _COUNTED, 1, f"takes_ns={takes_us * 1000}")
    return min(idle_instructions(*program, extra=extra) for _ in range(2 if extra else 1)) / _COUNTED


def instructions(node: Node, more: bool = True) -> dict[str, Any]:
    """Count what the library adds to a launch, and what the beacon adds to an online one. `more`: of all kinds."""
    offline = node.offline()
    calls = CALLS if more else (FIRST,)
    bare = {call: per_launch(call, NOTHING_US, {}) for call in calls}
    by_call = {call: round(per_launch(call, NOTHING_US, offline) - bare[call], 1) for call in calls}
    say(f"instructions per launch: {by_call}")
    by_us = {us: round(per_launch(FIRST, us, offline) - bare[FIRST], 1) for us in LENGTHS_US if more or us == SHORT_US}
    beacon = round(per_launch(FIRST, NOTHING_US, node.online()) - bare[FIRST], 1)
    say(f"    by the kernel's length in µs: {by_us}; of an online launch: {beacon}")
    return {
        "launch_instructions_added": by_call[FIRST],
        "launch_instructions_added_by_call": by_call,
        "launch_instructions_added_by_us": {str(us): added for us, added in by_us.items()},
        "beacon_instructions": beacon,
    }


def calls(node: Node) -> dict[str, Any]:
    """Count the calls to the driver beyond the launch."""
    by_us = {
        us: idle_run("bench_launches", FIRST, 5000, 20, f"takes_ns={us * 1000}", extra=node.offline())[1]
        for us in LENGTHS_US
    }
    say(f"calls to the driver added per launch, by the kernel's length in µs: {by_us}")
    return {
        "driver_calls_per_launch_added": round(by_us[SHORT_US], 3),
        "driver_calls_per_launch_added_by_us": {str(us): round(each, 3) for us, each in by_us.items()},
    }


def times(node: Node, repeat: int, rounds: int = 100) -> dict[str, Any]:
    """Measure the time that the library adds: the shortest of many short rounds, with and without in turn."""
    shortest: dict[tuple[int, bool], float] = {}
    for _ in range(repeat):
        for threads in (1, 2):
            for preloaded in (False, True):
                extra = node.offline() if preloaded else {}
                ns, _ = idle_run("bench_launches", FIRST, 5000, rounds, f"threads={threads}", extra=extra)
                shortest[threads, preloaded] = min(ns, shortest.get((threads, preloaded), ns))
    added = {threads: round(shortest[threads, True] - shortest[threads, False], 1) for threads in (1, 2)}
    say(f"ns added per launch: {added[1]} with one thread, {added[2]} with two")
    return {
        "launch_ns_added": added[1],
        "launch_ns_added_2threads": added[2],
        "launch_ns_bare": round(shortest[1, False], 1),
        "launch_ns_bare_2threads": round(shortest[2, False], 1),
    }
