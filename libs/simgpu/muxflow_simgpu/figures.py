"""Figures about protection, computed from a simulated device's own log of operations and an online service's own notes.

Pure; times are nanoseconds of CLOCK_MONOTONIC. What did not happen is None, never 0.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Collection, Iterable, Sequence

import msgspec

from muxflow_simgpu.busy import Interval, device_busy, idle, total_ns
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


def percentile(values: Iterable[float], per_cent: float) -> float:
    """Take the nearest-rank percentile: a value that was measured. ValueError when there is none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(per_cent / 100 * len(ordered)) - 1)]


class Pair(msgspec.Struct, frozen=True):
    """Latencies of one service under the same load twice, in slices of time: slice i of both had the same requests."""

    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]


def ratio_interval(
    pairs: Sequence[Pair], *, per_cent: float = 99, seed: int = 1, resamples: int = 400
) -> Interval95 | None:
    """Estimate how many times the percentile is what it was before: the median over services, and its 95% interval.

    Slices are drawn anew, the same ones on both sides (paired block bootstrap): what the load does to both is no noise.
    None when no service has latencies on both sides.
    """
    found = [pair for pair in pairs if any(pair.before) and any(pair.after)]
    if not found:
        return None
    chance = random.Random(seed)
    whole = statistics.median(_ratio(pair, range(_slices(pair)), per_cent) or 0.0 for pair in found)
    drawn = []
    for _ in range(resamples):
        ratios = [_ratio(pair, chance.choices(range(_slices(pair)), k=_slices(pair)), per_cent) for pair in found]
        present = [ratio for ratio in ratios if ratio is not None]
        if present:
            drawn.append(statistics.median(present))
    drawn.sort()
    if not drawn:
        return Interval95(whole, whole, whole)
    return Interval95(whole, drawn[int(0.025 * len(drawn))], drawn[max(0, int(0.975 * len(drawn)) - 1)])


def _slices(pair: Pair) -> int:
    return min(len(pair.before), len(pair.after))


def _ratio(pair: Pair, chosen: Iterable[int], per_cent: float) -> float | None:
    numbers = tuple(chosen)
    before = [latency for number in numbers for latency in pair.before[number]]
    after = [latency for number in numbers for latency in pair.after[number]]
    return percentile(after, per_cent) / percentile(before, per_cent) if before and after else None


class Tally:
    """A device's log, folded as it is read: when each process ran kernels, and how much work they did.

    A log of hundreds of thousands of kernels is then a few thousand intervals.
    """

    def __init__(self, begin_ns: int, *, slice_ns: int = RATE_NS) -> None:
        self._begin_ns = begin_ns
        self._slice_ns = slice_ns
        self._spans: dict[int, list[Interval]] = {}
        self._work_ns: dict[int, dict[int, float]] = {}

    def take(self, operations: Iterable[Operation]) -> None:
        """Fold what has ended since, in the order of the log."""
        for each in operations:
            if each.kind not in KERNELS or each.started_ns is None or each.ended_ns <= each.started_ns:
                continue
            _extend(self._spans.setdefault(each.pid, []), (each.started_ns, each.ended_ns))
            if not each.cancelled:
                self._spread(self._work_ns.setdefault(each.pid, {}), each.started_ns, each.ended_ns, each.work_ns)

    def _spread(self, work_ns: dict[int, float], start_ns: int, end_ns: int, work: float) -> None:
        """Put work into the slices in which it was done."""
        rate = work / (end_ns - start_ns)
        while start_ns < end_ns:
            number = (start_ns - self._begin_ns) // self._slice_ns
            until_ns = min(end_ns, self._begin_ns + (number + 1) * self._slice_ns)
            work_ns[number] = work_ns.get(number, 0.0) + rate * (until_ns - start_ns)
            start_ns = until_ns

    def pids(self) -> frozenset[int]:
        """Processes that ran kernels."""
        return frozenset(self._spans)

    def busy(self, pids: Collection[int], start_ns: int, end_ns: int) -> tuple[Interval, ...]:
        """Find when at least one kernel of these processes ran."""
        merged: list[Interval] = []
        for span in sorted(span for pid in pids for span in self._spans.get(pid, ())):
            cut = (max(span[0], start_ns), min(span[1], end_ns))
            if cut[0] < cut[1]:
                _extend(merged, cut)
        return tuple(merged)

    def work_ns(self, pids: Collection[int], start_ns: int, end_ns: int) -> float:
        """Add up what kernels got done, in time that they would take alone on the whole device.

        Exact for times that are whole slices from the begin; within a slice work counts as spread evenly.
        """
        return sum(
            work * self._overlap(number, start_ns, end_ns)
            for pid in pids
            for number, work in self._work_ns.get(pid, {}).items()
        )

    def _overlap(self, number: int, start_ns: int, end_ns: int) -> float:
        begin_ns = self._begin_ns + number * self._slice_ns
        inside_ns = min(begin_ns + self._slice_ns, end_ns) - max(begin_ns, start_ns)
        return max(0.0, inside_ns / self._slice_ns)

    def offline_share(
        self, *, online: Collection[int], offline: Collection[int], start_ns: int, end_ns: int
    ) -> float | None:
        """Compute what offline jobs got done, relative to running alone in exactly the online side's idle time.

        None when the online side left none.
        """
        idle_ns = total_ns(idle(self.busy(online, start_ns, end_ns), start_ns, end_ns))
        return self.work_ns(offline, start_ns, end_ns) / idle_ns if idle_ns else None


def _extend(spans: list[Interval], span: Interval) -> None:
    """Add an interval that ends last to intervals that are in order and do not touch."""
    start_ns, end_ns = span
    while spans and spans[-1][1] >= start_ns:
        before = spans.pop()
        start_ns, end_ns = min(before[0], start_ns), max(before[1], end_ns)
    spans.append((start_ns, end_ns))
