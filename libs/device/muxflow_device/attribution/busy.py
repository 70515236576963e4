"""How busy the offline side kept a GPU, from the counters in its job pages.

*Offline busy* is the share of wall time in which at least one offline operation ran. Each process counts its own such
time; processes that run at once are counted twice, so the sum over them is an upper bound, and never more than the time
that has passed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from muxflow_device.attribution.jobs import OfflineJob

_KEPT_NS: Final = 3_000_000_000
"""How far back the curve reaches: NVML's longest period, twice, and a late look."""


class _Seen(NamedTuple):
    busy_ns: int
    inflight: int


class BusyMeter:
    """The curve of offline busy time of one GPU. One look at the pages is one point of it."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._curve: deque[tuple[int, int]] = deque()

    def take(self, now_ns: int, jobs: Iterable[OfflineJob]) -> None:
        """Add what the pages say now. Times are CLOCK_MONOTONIC and go forwards."""
        before_ns, total_ns = self._curve[-1] if self._curve else (now_ns, 0)
        passed_ns = now_ns - before_ns
        worked_ns = 0
        seen = {}
        for job in jobs:
            now = _Seen(job.usage.busy_ns, job.usage.inflight)
            worked_ns += _worked(self._seen.get(job.name), now, passed_ns)
            seen[job.name] = now
        self._seen = seen
        self._curve.append((now_ns, total_ns + min(worked_ns, passed_ns)))
        while self._curve[0][0] < now_ns - _KEPT_NS:
            self._curve.popleft()

    def share(self, begin_ns: int, end_ns: int) -> float:
        """Give the part of an interval, 0 to 1, in which offline operations ran."""
        if end_ns <= begin_ns:
            return 0.0
        return min(1.0, max(0.0, (self._at(end_ns) - self._at(begin_ns)) / (end_ns - begin_ns)))

    def newest(self) -> float:
        """Give the part of the time between the last two looks."""
        if len(self._curve) < 2:
            return 0.0
        (begin_ns, _), (end_ns, _) = self._curve[-2], self._curve[-1]
        return self.share(begin_ns, end_ns)

    def _at(self, time_ns: int) -> float:
        """Read the curve, straight between two looks and level beyond its ends."""
        later: tuple[int, int] | None = None
        for point in reversed(self._curve):
            if point[0] <= time_ns:
                if later is None:
                    return point[1]
                part = (time_ns - point[0]) / (later[0] - point[0])
                return point[1] + part * (later[1] - point[1])
            later = point
        return later[1] if later is not None else 0.0


def _worked(before: _Seen | None, now: _Seen, passed_ns: int) -> int:
    """Time that a job worked since the last look.

    Its counter moves when an operation is known to be complete: one that has been in flight all the while, with nothing
    counted, is running.
    """
    if before is None:
        return min(now.busy_ns, passed_ns)
    counted_ns = max(0, now.busy_ns - before.busy_ns)
    if counted_ns == 0 and now.inflight and before.inflight:
        return passed_ns
    return counted_ns
