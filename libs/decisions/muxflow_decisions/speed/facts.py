"""What is known of a pair, and what was measured of one: the rows that models are trained from.

Everything in here can be measured on a live system; nothing is told by whoever wrote the job.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from muxflow.contracts.event import Bytes, Percent, Permille, Seconds, ThreadPercentage, TimeNs
from muxflow.contracts.profiles import Amount, CorunProfile, OfflineProfile, OnlineProfile, Share
from muxflow.contracts.queries import Pair


class PairName(NamedTuple):
    """Which pair: the identity of its measurements, whatever the SM share."""

    offline_key: str
    workload: str
    gpu_kind: str


class PairFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A pair in figures. None: not known on this kind of GPU, or not yet."""

    gpu_memory_bytes: Bytes | None = None
    memory_bytes: Bytes | None = None
    """The offline job's quota."""
    sm_share_pct: ThreadPercentage | None = None
    """The offline job's; None: all."""

    # The offline job alone on that kind.
    offline_utilization_pct: Percent | None = None
    offline_sm_activity_pct: Percent | None = None
    offline_sm_occupancy_pct: Percent | None = None
    offline_bandwidth_pct: Percent | None = None
    offline_memory_bytes: Bytes | None = None
    offline_busy_permille: Permille | None = None
    offline_kernel_time_us: Amount | None = None
    offline_launches_per_s: Amount | None = None
    offline_sm_share_pct: ThreadPercentage | None = None
    """With which share all that was measured; None: with all SMs."""

    # The online service on that kind.
    online_activity_pct: Percent | None = None
    """Mean."""
    online_activity_p99_pct: Percent | None = None
    online_memory_bytes: Bytes | None = None


class MeasuredPair(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One measurement of an offline job beside an online service."""

    offline_key: str
    workload: str
    gpu_kind: str
    facts: PairFacts
    """As they were while it was measured."""
    normalized_throughput: Share | None = None
    """Relative to running alone; None: it was never fast or slow, such as when it did not fit."""
    fits: bool | None = None
    """Whether both fitted into the device's memory; None: nobody saw."""
    measured_s: Seconds = 0.0
    time_ns: TimeNs = 0
    simulated: bool = False
    """Measured on a simulated GPU, and shipped."""

    @property
    def name(self) -> PairName:
        return PairName(self.offline_key, self.workload, self.gpu_kind)


def facts_of(pair: Pair, offline: OfflineProfile | None, online: OnlineProfile | None) -> PairFacts:
    """Gather what is known of a pair now. A profile that could not be measured well says nothing."""
    job = offline if offline is not None and offline.failure is None else None
    return PairFacts(
        gpu_memory_bytes=pair.gpu_memory_bytes,
        memory_bytes=pair.memory_bytes,
        sm_share_pct=pair.sm_share_pct,
        offline_utilization_pct=job.utilization_pct if job else None,
        offline_sm_activity_pct=job.sm_activity_pct if job else None,
        offline_sm_occupancy_pct=job.sm_occupancy_pct if job else None,
        offline_bandwidth_pct=job.memory_bandwidth_pct if job else None,
        offline_memory_bytes=job.memory_peak_bytes if job else None,
        offline_busy_permille=job.busy_permille if job else None,
        offline_kernel_time_us=job.kernel_time_us_mean if job else None,
        offline_launches_per_s=job.launches_per_s if job else None,
        offline_sm_share_pct=job.sm_share_pct if job else None,
        online_activity_pct=online.activity_pct_mean if online else None,
        online_activity_p99_pct=online.activity_pct_p99 if online else None,
        online_memory_bytes=online.memory_peak_bytes if online else None,
    )


def measured_pair(
    corun: CorunProfile,
    offline: OfflineProfile | None,
    online: OnlineProfile | None,
    *,
    gpu_memory_bytes: int | None,
) -> MeasuredPair | None:
    """Make a row of what was measured; None when it says nothing that can be learned from."""
    if corun.normalized_throughput is None and corun.fits is None:
        return None
    pair = Pair(
        offline_key=corun.offline_key,
        memory_bytes=(offline.memory_peak_bytes if offline else None) or 0,
        gpu_kind=corun.gpu_kind,
        gpu_memory_bytes=gpu_memory_bytes,
        workload=corun.workload,
        sm_share_pct=corun.sm_share_pct,
    )
    facts = facts_of(pair, offline, online)
    if corun.online_activity_pct is not None:  # what it was meanwhile, not what it is now
        facts = msgspec.structs.replace(facts, online_activity_pct=corun.online_activity_pct)
    return MeasuredPair(
        offline_key=corun.offline_key,
        workload=corun.workload,
        gpu_kind=corun.gpu_kind,
        facts=facts,
        normalized_throughput=corun.normalized_throughput,
        fits=corun.fits,
        measured_s=corun.measured_s,
        time_ns=corun.time_ns,
    )
