"""How much of a GPU its online side uses: *online activity*.

The device's own meters contain our offline work, so they say nothing about the online side alone. In parts of 1, with
*device* = SM activity where GPM gives it, else utilization, and *busy* = the offline busy share over the very same
interval:

- Nobody but us has a context: 0, exactly. Nothing offline ran: *device*, exactly.
- **displaced** = device − busy / inflation, where inflation is how much longer offline kernels take than alone. As new
  as the meters. Busy counts the time with *any* offline kernel as if each filled the GPU, so this is too small by the
  SMs that ours leave free; but it sees the online side push ours aside, since ours then take longer. A saturating job
  beside an idle service leaves 0. Contention among offline jobs, or a lower clock, makes it too large.
- **direct** = the online processes' own utilization, as NVML counts it per process: the share of time in which their
  kernels ran, up to a second old; too large by the SMs that those leave free. Where SM activity is known it is at most
  what `online_activity_pct` of the decisions finds in that, with our busy time weighted by the SMs that our kernels
  take when they run alone: the smallest SM activity per busy time of the last minute.
- Where NVML does not tell processes apart, `online_activity_pct` of the device's activity takes its place: what shows
  beside ours, scaled up by the time in which it could show. Its error grows with that factor.

The result is the larger of displaced and direct: a burst that takes SMs from us shows at once, one that takes free ones
with NVML's next sample. It is null when no meter is there, or when our work hides everything: that never means idle.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from muxflow_decisions.device import online_activity_pct
from muxflow_device.attribution.busy import BusyMeter
from muxflow_device.attribution.processes import Crowd, Side
from muxflow_device.readings.look import Look, Share

_WEIGHED_NS: Final = 60_000_000_000
_BUCKET_NS: Final = 1_000_000_000
_BUSY_ENOUGH: Final = 0.1
"""Less offline work says nothing about its weight: the quotient is noise."""


class OfflineWeight:
    """The part of the SMs that offline kernels take while they run, 0 to 1: an upper bound, from the last minute."""

    def __init__(self) -> None:
        self._lowest: deque[tuple[int, float]] = deque()
        """Lowest quotient of each second, oldest first."""

    def take(self, sm_activity: Share, busy: float) -> None:
        """Note one interval, with the offline busy share in it."""
        second = sm_activity.end_ns // _BUCKET_NS
        while self._lowest and self._lowest[0][0] < second - _WEIGHED_NS // _BUCKET_NS:
            self._lowest.popleft()
        if busy < _BUSY_ENOUGH:
            return
        quotient = min(1.0, sm_activity.part / busy)
        if self._lowest and self._lowest[-1][0] == second:
            quotient = min(quotient, self._lowest.pop()[1])
        self._lowest.append((second, quotient))

    @property
    def value(self) -> float:
        """1 while nothing is known."""
        return min((quotient for _, quotient in self._lowest), default=1.0)


class OnlineMeter:
    """Online activity of one GPU, look by look."""

    def __init__(self) -> None:
        self._weight = OfflineWeight()

    def estimate_pct(
        self, look: Look, busy: BusyMeter, *, inflation_permille: int | None, crowd: Crowd | None
    ) -> float | None:
        """Estimate in per cent. `crowd` is null where nobody can tell who is on the GPU."""
        if crowd is not None and crowd.complete and not crowd.others:
            return 0.0
        direct_pct = _direct_pct(look, crowd)
        device = look.sm_activity or look.utilization
        if device is None:
            return direct_pct
        offline = busy.share(device.begin_ns, device.end_ns)
        if look.sm_activity is not None:
            self._weight.take(look.sm_activity, offline)
        if offline == 0:
            return device.pct
        inflation = max(1.0, (inflation_permille or 1000) / 1000)
        displaced_pct = max(0.0, device.pct - 100.0 * offline / inflation)
        if direct_pct is None:
            direct_pct = online_activity_pct(device_pct=device.pct, offline_pct=100.0 * offline)
        elif look.sm_activity is not None:
            weighted_pct = 100.0 * offline * self._weight.value / inflation
            bound_pct = online_activity_pct(device_pct=device.pct, offline_pct=weighted_pct)
            direct_pct = min(direct_pct, bound_pct) if bound_pct is not None else direct_pct
        if direct_pct is None:
            return displaced_pct or None
        return max(displaced_pct, direct_pct)


def _direct_pct(look: Look, crowd: Crowd | None) -> float | None:
    """Add up what NVML counts for online processes; null where it does not tell them apart."""
    if look.process_utilization is None or crowd is None or not crowd.complete:
        return None
    if any(process.pid in look.process_utilization for process in crowd.on(Side.SERVER)):
        return None  # the server's share is that of all its clients
    return min(100.0, 100.0 * sum(look.process_utilization.get(process.pid, 0.0) for process in crowd.others))
