"""The highest online activity of the last minutes: the forecast for SM shares until profiles say more."""

from __future__ import annotations

from collections import deque
from typing import Final

_REACH_NS: Final = 600_000_000_000
_BUCKET_NS: Final = 10_000_000_000


class Peak:
    """A maximum over ten minutes, in steps of ten seconds. Times are of one monotonic clock."""

    def __init__(self) -> None:
        self._buckets: deque[tuple[int, float]] = deque()

    def take(self, now_ns: int, activity_pct: float) -> None:
        """Note one reading."""
        bucket = now_ns // _BUCKET_NS
        if self._buckets and self._buckets[-1][0] == bucket:
            activity_pct = max(activity_pct, self._buckets.pop()[1])
        self._buckets.append((bucket, activity_pct))
        while self._buckets[0][0] < bucket - _REACH_NS // _BUCKET_NS:
            self._buckets.popleft()

    def forget_newest(self) -> None:
        """Take the last readings out again, up to ten seconds of them: they turned out to be another's doing."""
        if self._buckets:
            self._buckets.pop()

    @property
    def pct(self) -> float | None:
        """Null before the first reading."""
        return max((activity for _, activity in self._buckets), default=None)
