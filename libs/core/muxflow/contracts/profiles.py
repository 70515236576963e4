"""Measurements of workloads, and models made from them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.contracts.event import Bytes, Count, Event, Percent, ThreadPercentage, TimeNs

Share = Annotated[float, Meta(ge=0, description="Relative to running alone; 1 is undisturbed.")]
"""A throughput without a unit."""


class OfflineProfile(Event, frozen=True, kw_only=True):
    """A job measured alone on a GPU kind. Last message per subject."""

    key: str
    gpu_kind: str
    sm_activity_pct: Percent | None = None
    sm_occupancy_pct: Percent | None = None
    memory_bandwidth_pct: Percent | None = None
    memory_peak_bytes: Bytes | None = None
    kernel_time_us_p50: Annotated[float, Meta(ge=0)] | None = None
    launches_per_s: Annotated[float, Meta(ge=0)] | None = None
    samples: Count = 0
    confident: bool = False
    failure: str | None = None
    """Why it could not be measured, if it could not."""


class OnlineInterval(msgspec.Struct, frozen=True, kw_only=True):
    """An online service in one interval of the day."""

    start_minute: Annotated[int, Meta(ge=0, lt=1440)]
    """Minutes after midnight UTC."""
    sm_activity_pct_mean: Percent | None = None
    sm_activity_pct_p99: Percent | None = None
    memory_peak_bytes: Bytes | None = None
    samples: Count = 0


class OnlineProfile(Event, frozen=True, kw_only=True):
    """An online service by time of day. Last message per subject."""

    key: str
    workload: str
    gpu_kind: str
    intervals: tuple[OnlineInterval, ...] = ()
    forecast_peak_sm_activity_pct: Percent | None = None
    """Expected peak of the next interval."""
    forecast_until_ns: TimeNs = 0


class CorunProfile(Event, frozen=True, kw_only=True):
    """An offline job measured beside an online service. Last message per subject."""

    key: str
    offline_key: str
    online_key: str
    gpu_kind: str
    sm_share_pct: ThreadPercentage | None = None
    normalized_throughput: Share | None = None
    fits: bool | None = None
    samples: Count = 0


class SpeedModel(Event, frozen=True, kw_only=True):
    """A trained speed model that serves from now on. Last message per subject."""

    model: str
    version: str
    object_name: str
    """Name in the object store ``models``."""
    trained_rows: Count
    evaluation: dict[str, float] = {}
    """Metric name to value on held-out measurements."""
