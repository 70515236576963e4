"""How much of a device the online side uses, when the device tells only what all of it does.

A device's utilization u is the share of time in which anybody's kernel ran. With offline work running for a share b of
that time, and the online side for a share d that does not depend on it,

    1 − u = (1 − b) (1 − d)        so        d = (u − b) / (1 − b).

The plain difference u − b is d (1 − b): what the online side does *while nothing offline runs*. The more offline work
is let in, the less it shows, and a law that follows it lets in still more. So the difference is divided by the share of
time in which it could be seen. Of an SM activity the same holds with b times the offline side's share of the SMs.

Figures are rounded and not quite simultaneous, which the division magnifies. One quantum is taken off the difference
first, so that an idle online side reads as 0 and a busy one a little low; and when less than `_SEEN_PCT` of the time
shows anything, nothing is known. That is why the budget law never gives the whole device away.

Where online processes carry the beacon, offline gates hold while they are active. Then both sides hardly ever run at
once, u = b + d, and the plain difference is the online side's activity: nothing hides it.
"""

from __future__ import annotations

from typing import Final

QUANTUM_PCT: Final = 1.0
"""NVML's utilization is in whole per cents."""
_SEEN_PCT: Final = 2.0


def online_activity_pct(
    *, device_pct: float, offline_pct: float, quantum_pct: float = QUANTUM_PCT, apart: bool = False
) -> float | None:
    """Estimate the online side's activity; None when offline work hides it. `apart`: both sides keep clear of another.

    Both percentages are 0 to 100 and cover the same period: a figure of the last second and one of the last tenth are
    not comparable.
    """
    alone_pct = device_pct - offline_pct - quantum_pct if offline_pct > 0 else device_pct
    if apart:
        return max(alone_pct, 0.0)
    seen_pct = 100.0 - offline_pct
    if seen_pct < _SEEN_PCT:
        return None
    return min(max(100.0 * alone_pct / seen_pct, 0.0), 100.0)
