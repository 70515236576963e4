"""What online services say of their own latency: the newest report of each, for as long as it says something."""

from __future__ import annotations

from typing import Final, NamedTuple

from muxflow.contracts import OnlineAlert, SloReport

_LATE: Final = 3.0
"""A report counts for this many of its windows: one may be lost on the way, two say that the service has left."""
_WINDOW_MIN_S: Final = 1.0
_RATIO_MAX: Final = 1_000.0


class _Newest(NamedTuple):
    ratio: float | None
    lost: int
    until_s: float

    @property
    def missed(self) -> bool:
        return self.ratio is not None and self.ratio > 1.0


class SloReports:
    """By workload. Times are CLOCK_MONOTONIC, in seconds."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._newest: dict[str, _Newest] = {}

    def take(self, report: SloReport, *, gpu: str, target_ms: float | None, now_s: float) -> OnlineAlert | None:
        """Note a report on a workload of this GPU. The target is the report's own, else the declared `target_ms`.

        Gives the alert when the service begins to miss its target, or to lose requests.
        """
        target_ms = report.latency_target_ms or target_ms
        ratio = None
        if target_ms and report.latency_p99_ms is not None:
            ratio = min(report.latency_p99_ms / target_ms, _RATIO_MAX)
        before = self._fresh(report.workload, now_s)
        window_s = max(report.window_s, _WINDOW_MIN_S)
        newest = _Newest(ratio=ratio, lost=report.lost, until_s=now_s + _LATE * window_s)
        self._newest[report.workload] = newest
        troubles = []
        if newest.missed and not (before and before.missed):
            troubles.append(f"p99 latency {report.latency_p99_ms:g} ms, target {target_ms:g} ms")
        if newest.lost and not (before and before.lost):
            troubles.append(f"{report.lost} of {report.requests} requests lost")
        if not troubles:
            return None
        return OnlineAlert(
            node=self._node,
            gpu=gpu,
            workload=report.workload,
            message=f"{'; '.join(troubles)}, over {report.window_s:g} s",
            latency_p99_ms=report.latency_p99_ms,
            latency_target_ms=target_ms,
        )

    def ratio(self, workload: str, now_s: float) -> float | None:
        """Give latency over target, null when nothing is known (any more)."""
        newest = self._fresh(workload, now_s)
        return newest.ratio if newest is not None else None

    def _fresh(self, workload: str, now_s: float) -> _Newest | None:
        newest = self._newest.get(workload)
        return newest if newest is not None and newest.until_s > now_s else None
