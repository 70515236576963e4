"""What the quota costs: a free and an allocation, beside few and many that live. On a driver that does nothing."""

from __future__ import annotations

from typing import Any

from xcuda.node import idle_run, node, say

LIVE = (1, 5000, 100_000)
_QUOTA_BYTES = 32 << 30
_PAIRS = 1000


def times(repeat: int, rounds: int = 50) -> dict[str, Any]:
    """Measure the time that is added to a pair: the shortest of many short rounds, with and without in turn."""
    shortest: dict[bool, list[float]] = {}
    with node(quota_bytes=_QUOTA_BYTES) as limited:
        for _ in range(repeat):
            for preloaded in (False, True):
                extra = limited.offline() if preloaded else {}
                found = idle_run("bench_memory", _PAIRS, rounds, *LIVE, extra=extra)
                shortest[preloaded] = [min(pair) for pair in zip(found, shortest.get(preloaded, found), strict=True)]
    added = [round(with_it - bare, 1) for with_it, bare in zip(shortest[True], shortest[False], strict=True)]
    say(f"ns added to a free and an allocation, beside {LIVE} that live: {added}")
    return {
        "alloc_free_ns_added": added[0],
        "alloc_free_ns_added_5000_live": added[1],
        "alloc_free_ns_added_100000_live": added[2],
    }
