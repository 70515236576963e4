"""Measurements of workloads, and models made from them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.contracts.event import Bytes, Count, Event, Percent, Permille, Seconds, ThreadPercentage, TimeNs

Share = Annotated[float, Meta(ge=0, description="Relative to running alone; 1 is undisturbed.")]
"""A throughput without a unit."""
Amount = Annotated[float, Meta(ge=0)]


class OfflineProfile(Event, frozen=True, kw_only=True):
    """A job measured alone on a GPU kind. Last message per subject."""

    key: str
    """`JobSpec.measured_as`."""
    gpu_kind: str
    utilization_pct: Percent | None = None
    """NVML: share of time in which any of its kernels ran."""
    sm_activity_pct: Percent | None = None
    sm_occupancy_pct: Percent | None = None
    memory_bandwidth_pct: Percent | None = None
    memory_peak_bytes: Bytes | None = None
    busy_permille: Permille | None = None
    """Share of time in which at least one of its operations ran, by its own count. A device that is watched caps it,
    at 900 unless its monitor is told otherwise, and `launches_per_s` with it."""
    kernel_time_us_mean: Amount | None = None
    """Mean device time of a launch, copies included; operations that run at the same time are counted once."""
    launches_per_s: Amount | None = None
    """Its speed: throughput beside an online service is compared with this."""
    launches_relative_error: Amount | None = None
    """Standard error of `launches_per_s` relative to it."""
    sm_share_pct: ThreadPercentage | None = None
    """The share that it was measured with; null where nothing limited it."""
    measured_s: Seconds = 0.0
    """Time it was measured for, start-up left out."""
    samples: Count = 0
    confident: bool = False
    failure: str | None = None
    """Why it could not be measured well, if it could not. Jobs of this key then run without a profile."""


class OnlineInterval(msgspec.Struct, frozen=True, kw_only=True):
    """An online service in one interval of the day."""

    start_minute: Annotated[int, Meta(ge=0, lt=1440)]
    """Minutes after midnight UTC."""
    activity_pct_mean: Percent | None = None
    activity_pct_p99: Percent | None = None
    memory_peak_bytes: Bytes | None = None
    """Most memory in use that is no offline job's."""
    samples: Count = 0
    """How much these figures weigh, in readings: the same interval of each earlier day weighs less."""


class OnlineProfile(Event, frozen=True, kw_only=True):
    """An online service on a GPU kind, by time of day. Last message per subject."""

    workload: str
    gpu_kind: str
    interval_minutes: Annotated[int, Meta(ge=1, le=1440)] = 10
    intervals: tuple[OnlineInterval, ...] = ()
    activity_pct_mean: Percent | None = None
    """Over the last interval's length up to now."""
    activity_pct_p99: Percent | None = None
    """Over the last interval's length up to now."""
    memory_peak_bytes: Bytes | None = None
    """The same for memory in use that is no offline job's."""
    forecast_peak_pct: Percent | None = None
    """Expected peak of online activity until `forecast_until_ns`, the margin for its error included."""
    forecast_error_pct: Percent | None = None
    """The 90th percentile of how far forecasts of the past were too low. Null before there was one."""
    forecasts: Count = 0
    """Forecasts of the past that it comes from."""
    forecast_until_ns: TimeNs = 0
    gpus: Count = 0
    """GPUs on which it was seen during the last interval's length."""


class CorunProfile(Event, frozen=True, kw_only=True):
    """An offline job measured beside an online service. Last message per subject."""

    offline_key: str
    """`JobSpec.measured_as`."""
    workload: str
    gpu_kind: str
    sm_share_pct: ThreadPercentage | None = None
    """The offline job's."""
    online_activity_pct: Percent | None = None
    """Mean online activity while it was measured."""
    normalized_throughput: Share | None = None
    """Its launches per second relative to those when alone; null while that is not known."""
    fits: bool | None = None
    measured_s: Seconds = 0.0
    samples: Count = 0


class SpeedModel(Event, frozen=True, kw_only=True):
    """A trained speed model that serves from now on. Last message per subject."""

    model: str
    version: str
    object_name: str
    """Name in the object store ``models``."""
    trained_rows: Count
    held_out_rows: Count = 0
    """Measurements that it was judged by, and that are in no training set."""
    evaluation: dict[str, float] = {}
    """Metric name to value on held-out measurements."""
    measured_on: str = ""
    """What its measurements were made on, such as ``simulated``."""
