"""Figures about protection, computed from a simulated device's own log of operations and an online service's own notes.

Pure functions; times are nanoseconds of CLOCK_MONOTONIC. What did not happen is None, never 0.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Collection, Sequence

import msgspec

from muxflow_simgpu.busy import device_busy, idle, total_ns
from muxflow_simgpu.structs import KERNELS, Operation

MILLISECOND_NS = 1_000_000
QUIET_NS = 100 * MILLISECOND_NS
"""An online side that launches nothing for this long is between bursts."""
BURST_NS = 500 * MILLISECOND_NS
"""What is shorter is a request or two, and no burst."""
STOPPED_NS = 50 * MILLISECOND_NS
"""Offline work that runs nothing for this long has been stopped."""
NEVER_NS = 2**63
RATE_NS = 100 * MILLISECOND_NS
"""The rate of offline work is taken over this long."""


class Burst(msgspec.Struct, frozen=True):
    """One burst of online work."""

    first_launch_ns: int
    last_end_ns: int
    quiet_until_ns: int
    """When the next one begins, or the observation ends."""


def kernels(operations: Sequence[Operation], pids: Collection[int]) -> list[Operation]:
    """Pick the kernels of these processes that ran, by their start."""
    found = [each for each in operations if each.pid in pids and each.kind in KERNELS and each.started_ns is not None]
    return sorted(found, key=lambda each: each.started_ns or 0)


def work_ns(operations: Sequence[Operation], start_ns: int, end_ns: int) -> float:
    """Add up what kernels got done between two times, in time that they would take alone on the whole device."""
    done = 0.0
    for each in operations:
        if each.started_ns is None or each.cancelled or each.ended_ns <= each.started_ns:
            continue
        inside = min(each.ended_ns, end_ns) - max(each.started_ns, start_ns)
        if inside > 0:
            done += each.work_ns * inside / (each.ended_ns - each.started_ns)
    return done


def offline_share(
    operations: Sequence[Operation], *, online: Collection[int], offline: Collection[int], start_ns: int, end_ns: int
) -> float:
    """Compute what the offline job got done, relative to running alone in exactly the online side's idle time."""
    busy = device_busy(operations, start_ns, end_ns, pids=online)
    idle_ns = total_ns(idle(busy, start_ns, end_ns))
    return work_ns(kernels(operations, offline), start_ns, end_ns) / idle_ns if idle_ns else 0.0


def bursts(operations: Sequence[Operation], online: Collection[int], end_ns: int) -> list[Burst]:
    """Find the bursts: online work for at least `BURST_NS`, without a pause of `QUIET_NS`."""
    spans: list[tuple[int, int]] = []
    for each in kernels(operations, online):
        if spans and each.enqueued_ns - spans[-1][1] < QUIET_NS:
            spans[-1] = (spans[-1][0], max(spans[-1][1], each.ended_ns))
        else:
            spans.append((each.enqueued_ns, each.ended_ns))
    found = [span for span in spans if span[1] - span[0] >= BURST_NS]
    ends_ns = [first_ns for first_ns, _ in found[1:]] + [end_ns]
    return [Burst(first_ns, last_ns, quiet_ns) for (first_ns, last_ns), quiet_ns in zip(found, ends_ns, strict=True)]


def stop_ms(burst: Burst, operations: Sequence[Operation], offline: Collection[int]) -> float | None:
    """Compute the time from a burst's first launch to the end of the last offline kernel before offline work stops.

    None when it never stops during the burst, or did not run when the burst began.
    """
    before_ns = burst.first_launch_ns - STOPPED_NS
    busy = device_busy(operations, before_ns, burst.last_end_ns, pids=offline)
    if not busy or busy[0][0] > burst.first_launch_ns:
        return None
    for start_ns, end_ns in idle(busy, before_ns, burst.last_end_ns):
        if end_ns - start_ns >= STOPPED_NS and end_ns > burst.first_launch_ns:
            return max(0.0, (start_ns - burst.first_launch_ns) / MILLISECOND_NS)
    return None


def recover_ms(burst: Burst, operations: Sequence[Operation], offline: Collection[int]) -> float | None:
    """Compute the time from a burst's last end until offline work is back at 90% of the rate it had before the burst.

    None when it had none before, or is not back when the next burst begins.
    """
    done = kernels(operations, offline)
    former = work_ns(done, burst.first_launch_ns - 3 * RATE_NS, burst.first_launch_ns) / 3
    if former <= 0:
        return None
    step_ns = 5 * MILLISECOND_NS
    near = [each for each in done if each.ended_ns > burst.last_end_ns]
    for at_ns in range(burst.last_end_ns, burst.quiet_until_ns - RATE_NS + 1, step_ns):
        if work_ns(near, at_ns, at_ns + RATE_NS) >= 0.9 * former:
            return (at_ns - burst.last_end_ns) / MILLISECOND_NS
    return None


def stopped_ns(operations: Sequence[Operation], pids: Collection[int], *, after_ns: int) -> int:
    """Find when the last kernel ended before a pause of `STOPPED_NS`; the time itself when none ran after it."""
    last_ns = after_ns
    for start_ns, end_ns in device_busy(operations, after_ns, NEVER_NS, pids=pids):
        if start_ns - last_ns >= STOPPED_NS:
            break
        last_ns = end_ns
    return last_ns


class Interval95(msgspec.Struct, frozen=True):
    """A median and its 95% interval."""

    median: float
    low: float
    high: float


def median_interval(values: Sequence[float], *, seed: int = 1, resamples: int = 2000) -> Interval95:
    """Estimate the median's 95% interval by the percentile bootstrap (Efron, 1979). ValueError without values."""
    if not values:
        raise ValueError("no values")
    chance = random.Random(seed)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(resamples))
    low, high = medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1]
    return Interval95(statistics.median(values), low, high)
