"""What the quota costs an allocation and a free, beside few and many that live. On a driver that does nothing."""

from __future__ import annotations

from typing import Any

from xcuda.node import Node, idle_instructions, idle_run, say

QUOTA_BYTES = 32 << 30
LIVE = (1, 5000, 100_000)
_PAIRS = 1000


def instructions(node: Node) -> dict[str, Any]:
    """Count what is added to a pair that frees any of those that live, and allocates another."""
    added = {}
    for live in (LIVE[0], LIVE[-1]):
        with_it, bare = (
            idle_instructions("bench_memory", "any", _PAIRS, 1, live, extra=extra) for extra in (node.offline(), {})
        )
        added[str(live)] = round((with_it - bare) / _PAIRS, 1)
    say(f"instructions added to an allocation and a free, beside so many that live: {added}")
    return {"alloc_free_instructions_added_by_live": added}


def times(node: Node, repeat: int, rounds: int = 50) -> dict[str, Any]:
    """Measure the time that is added: the shortest of many short rounds, with and without in turn."""
    shortest: dict[bool, list[float]] = {}
    for _ in range(repeat):
        for preloaded in (False, True):
            extra = node.offline() if preloaded else {}
            found = idle_run("bench_memory", "both", _PAIRS, rounds, *LIVE, extra=extra)
            shortest[preloaded] = [min(pair) for pair in zip(found, shortest.get(preloaded, found), strict=True)]
    added = [round(with_it - bare, 1) for with_it, bare in zip(shortest[True], shortest[False], strict=True)]
    new, any_one, growing = added[:-1:2], added[1:-1:2], added[-1]
    say(f"ns added to an allocation and a free, beside {LIVE} that live: {new}; of any of them: {any_one}")
    say(f"    to an allocation that is to live: {growing}")
    return {
        "alloc_free_ns_added": new[0],
        "alloc_free_ns_added_5000_live": new[1],
        "alloc_free_ns_added_100000_live": new[2],
        "alloc_free_ns_added_any_by_live": dict(zip(map(str, LIVE), any_one, strict=True)),
        "alloc_growing_ns_added": growing,
    }
