"""Busy and idle time, computed from a device's own log of operations.

The log is the simulation's truth: what benchmarks compare monitors and gates with. Intervals are pairs of
nanoseconds, start included, end not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeAlias

from muxflow_simgpu.structs import KERNELS, Operation

Interval: TypeAlias = tuple[int, int]


def device_busy(
    operations: Iterable[Operation], start_ns: int, end_ns: int, *, pids: Collection[int] | None = None
) -> tuple[Interval, ...]:
    """Find when at least one kernel (of these processes) ran between the two times.

    Intervals are in order and do not touch. Of processes that share the device in time slices, a kernel counts from its
    start to its end, slices of others included: take `Operation.ran_ns` where that matters.
    """
    spans = sorted(
        (max(operation.started_ns, start_ns), min(operation.ended_ns, end_ns))
        for operation in operations
        if operation.kind in KERNELS
        and operation.started_ns is not None
        and operation.started_ns < end_ns
        and operation.ended_ns > start_ns
        and (pids is None or operation.pid in pids)
    )
    merged: list[Interval] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif start < end:
            merged.append((start, end))
    return tuple(merged)


def total_ns(intervals: Iterable[Interval]) -> int:
    """Add up the lengths of intervals."""
    return sum(end - start for start, end in intervals)


def idle(busy: Iterable[Interval], start_ns: int, end_ns: int) -> tuple[Interval, ...]:
    """Find the gaps between busy intervals, from the one time to the other."""
    gaps: list[Interval] = []
    at = start_ns
    for start, end in busy:
        if start > at:
            gaps.append((at, min(start, end_ns)))
        at = max(at, end)
    if at < end_ns:
        gaps.append((at, end_ns))
    return tuple(gaps)


def busy_share(
    operations: Iterable[Operation], start_ns: int, end_ns: int, *, pids: Collection[int] | None = None
) -> float:
    """Compute the share, 0 to 1, of the time in which a kernel (of these processes) ran."""
    return total_ns(device_busy(operations, start_ns, end_ns, pids=pids)) / (end_ns - start_ns)
