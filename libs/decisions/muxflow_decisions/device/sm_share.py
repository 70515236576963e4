"""The share of the SMs that an offline job gets when it is started next.

MPS reads it when a context is created and holds it for the context's life: it is set for the online side's forecast
peak, and what the peak leaves unused is for the budget to trim.
"""

from __future__ import annotations

from typing import Final

import msgspec

from muxflow.contracts import OnlineProfile
from muxflow.contracts.event import Percent, ThreadPercentage

WHOLE_DEVICE_PCT: Final = 100
"""The share of a job that is measured alone."""


class SmSharePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the SM share. Raises ValueError when the bounds contradict each other."""

    headroom_pct: Percent = 10.0
    """Left free beside the forecast peak: forecasts miss, and a kernel in the tail of a burst finds SMs at once."""
    lowest_pct: ThreadPercentage = 10
    """Less is not worth a job's memory; the budget goes further down where it must."""
    highest_pct: ThreadPercentage = 90
    """Some SMs are never taken, so that a first online kernel starts beside any offline one."""
    unknown_pct: ThreadPercentage = 30
    """While nothing is known of the online side."""
    fixed_pct: ThreadPercentage | None = None
    """Dynamic SM allocation is off: every job beside a monitor gets this, whatever the online side does. Jobs that are
    measured alone still get the whole device."""

    def __post_init__(self) -> None:
        if not self.lowest_pct <= self.unknown_pct <= self.highest_pct:
            raise ValueError(
                f"lowest_pct ({self.lowest_pct}), unknown_pct ({self.unknown_pct}) and highest_pct "
                f"({self.highest_pct}) must be in this order"
            )


def expected_peak_pct(
    forecast: OnlineProfile | None,
    *,
    recent_peak_pct: float | None,
    uncovered_peak_pct: float | None = None,
    now_ns: int,
) -> float | None:
    """Tell for how much online activity SMs are to be left free, in percent; None: nothing is known.

    The forecast of the workload there while it holds, its margin included; else the peak that the monitor saw in the
    last minutes. Where beacons covered some of that, what they left uncovered counts instead of both: forecasts do not
    tell it apart, and what a beacon announces stops offline launches in time.
    """
    if uncovered_peak_pct is not None and (recent_peak_pct is None or uncovered_peak_pct < recent_peak_pct):
        return uncovered_peak_pct
    if forecast is not None and forecast.forecast_peak_pct is not None and now_ns < forecast.forecast_until_ns:
        return forecast.forecast_peak_pct
    return recent_peak_pct


def sm_share_pct(*, forecast_peak_pct: float | None, sm_count: int | None, policy: SmSharePolicy) -> int:
    """Decide the share, 1 to 100, for CUDA_MPS_ACTIVE_THREAD_PERCENTAGE.

    `forecast_peak_pct` is the online side's activity at its highest while the job will run; None: not known.
    `sm_count` is the GPU's; None: not known. Else the share is the least percentage that means as many SMs, so that
    the figure says what it does. A fixed share is given as it is.
    """
    if policy.fixed_pct is not None:
        return policy.fixed_pct
    free = policy.unknown_pct if forecast_peak_pct is None else int(100.0 - forecast_peak_pct - policy.headroom_pct)
    share = min(max(free, policy.lowest_pct), policy.highest_pct)
    if sm_count is None:
        return share
    return max(-(-sms(share, sm_count) * 100 // sm_count), policy.lowest_pct)


def sms(share_pct: int, sm_count: int) -> int:
    """How many SMs a share is: whole ones, and at least one. (A driver that rounds up gives at most one more.)"""
    return max(share_pct * sm_count // 100, 1)
