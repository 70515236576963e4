"""One look at a device: everything that is decided about it is decided from these."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.contracts.event import Bytes, Count, Percent, Permille


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """What one sample found. What a GPU cannot give is None, and None never counts as 0."""

    now_ns: int
    """When it was taken, by the monotonic clock that `advance` is driven with."""

    # The device as a whole, our own offline work included: no threshold is on these alone.
    utilization_pct: Percent | None = None
    """NVML: share of its last sample period (1/6 s to 1 s) in which any kernel ran."""
    sm_activity_pct: Percent | None = None
    sm_occupancy_pct: Percent | None = None
    memory_bandwidth_pct: Percent | None = None
    memory_used_bytes: Bytes | None = None
    memory_total_bytes: Bytes | None = None
    sm_clock_mhz: Count | None = None
    sm_clock_max_mhz: Count | None = None
    throttle_reasons: Count | None = None
    """NVML's bit mask."""
    power_w: Annotated[float, Meta(ge=0)] | None = None
    temperature_c: Annotated[float, Meta(ge=-273.15)] | None = None

    # The offline side, from job pages.
    offline_memory_bytes: Bytes | None = None
    offline_busy_permille: Permille | None = None
    """Share of the last period in which at least one offline operation ran, over all offline jobs."""
    inflation_permille: Count | None = None
    """Worst offline kernel time against the functions' own baselines; 1000: as ever."""

    # The online side.
    online_present: bool | None = None
    """Whether an online service is on the device; None when nobody can tell, which counts as yes."""
    online_activity_pct: Percent | None = None
    """Share of the device that the online side uses: see `attribution`."""
    online_last_launch_age_us: Count | None = None
    """Since the last launch by any online process, from the beacon; None without one."""
    online_beacons: bool | None = None
    """Whether every online process on the device carries the beacon and offline gates obey it; None when nobody can
    tell who is there. Then offline work keeps clear of online launches by itself."""
    slo_ratio: Annotated[float, Meta(ge=0)] | None = None
    """Worst online latency relative to its target; 1: just met. None when no service has reported lately."""
