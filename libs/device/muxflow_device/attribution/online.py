"""How much of a GPU its online side uses: *online activity*.

The device's own meters contain our offline work, so they say nothing about the online side alone. In parts of 1, with
*device* = SM activity where GPM gives it, else utilization, and *busy* = the offline busy share over the very same
interval:

- Nobody but us has a context: 0, exactly. Nothing offline ran: *device*, exactly.
- Where NVML counts the utilization of each process, the online ones' sum: the share of time in which their kernels ran,
  up to a second old. It is too large by the SMs that those leave free. Where SM activity is known it is cut to
  what `online_activity_pct` of the decisions finds in that, with *busy* weighted by the SMs that our kernels take when
  they run alone: the smallest SM activity per busy time of the last minute.
- Where it does not, `online_activity_pct` of *device* and *busy*: what shows beside our work, scaled up by the time in
  which it could show. Its error grows with that factor. Where all online processes carry the beacon there is none: our
  work keeps clear of theirs.

It is null when there is no meter, or when our work hides everything: that never means idle.
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

    def estimate_pct(self, look: Look, busy: BusyMeter, crowd: Crowd | None, *, apart: bool = False) -> float | None:
        """Estimate in per cent. `crowd` is null where nobody can tell who is on the GPU.

        `apart`: all of the online side carries the beacon, which is obeyed.
        """
        if crowd is not None and crowd.complete and not crowd.others:
            return 0.0
        if look.settling:
            return None  # utilization would be told instead, which is another quantity
        direct_pct = _direct_pct(look, crowd)
        device = look.sm_activity or look.utilization
        if device is None:
            return direct_pct
        offline = busy.share(device.begin_ns, device.end_ns)
        if look.sm_activity is not None:
            self._weight.take(look.sm_activity, offline)
        if offline == 0:
            return device.pct
        return self._beside(offline, device, direct_pct, weighted=look.sm_activity is not None, apart=apart)

    def _beside(
        self, offline: float, device: Share, direct_pct: float | None, *, weighted: bool, apart: bool
    ) -> float | None:
        """Estimate what the online side does while offline work runs for this part of the time."""
        if direct_pct is None:
            return online_activity_pct(device_pct=device.pct, offline_pct=100.0 * offline, apart=apart)
        if not weighted:
            return direct_pct
        taken_pct = 100.0 * offline * self._weight.value
        shown_pct = online_activity_pct(device_pct=device.pct, offline_pct=taken_pct, apart=apart)
        return direct_pct if shown_pct is None else min(direct_pct, shown_pct)


def _direct_pct(look: Look, crowd: Crowd | None) -> float | None:
    """Add up what NVML counts for online processes; null where it does not tell them apart."""
    if look.process_utilization is None or crowd is None or not crowd.complete:
        return None
    if any(process.pid in look.process_utilization for process in crowd.on(Side.SERVER)):
        return None  # the server's share is that of all its clients
    return min(100.0, 100.0 * sum(look.process_utilization.get(process.pid, 0.0) for process in crowd.others))
