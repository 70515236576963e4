"""One device under watch: its state, its faults, its readings, and what people are told about it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.contracts.event import Bytes, Count, Event, Milliseconds, Percent, Permille, Seconds, TimeNs


class DeviceCondition(StrEnum):
    """State of a device's offline side."""

    INIT = "init"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    OVERLIMIT = "overlimit"
    DISABLED = "disabled"


class OfflineUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt has used of a GPU since it began, as its own processes say: totals, so that a lost message loses
    nothing.
    """

    tenant: str
    job: str
    attempt: Count
    launches: Count
    """Kernels and graphs launched."""
    busy_us: Count
    """Device time in which at least one of its operations ran."""
    throttled_us: Count
    """Time for which launches waited for budget, window or beacon; of all its threads together."""
    frozen_us: Count
    """Time for which launches waited at a frozen gate; of all its threads together."""
    refused_bytes: Bytes
    """Memory that it asked for beyond its quota."""
    memory_bytes: Bytes
    """Device memory that it holds now."""


class GpuSample(msgspec.Struct, frozen=True, kw_only=True):
    """Readings of one GPU at one instant. What a GPU cannot give is null, never 0."""

    gpu: str
    state: DeviceCondition | None = None
    """State of its offline side; null when nobody watches it."""
    utilization_pct: Percent | None = None
    """NVML: share of the last sample period in which any kernel ran."""
    sm_activity_pct: Percent | None = None
    """Mean share of SMs with at least one warp resident (GPM, or DCGM field 1002)."""
    sm_occupancy_pct: Percent | None = None
    memory_bandwidth_pct: Percent | None = None
    memory_used_bytes: Bytes | None = None
    memory_total_bytes: Bytes | None = None
    offline_memory_bytes: Bytes | None = None
    sm_clock_mhz: Count | None = None
    throttle_reasons: Count | None = None
    """NVML's bit mask."""
    power_w: Annotated[float, Meta(ge=0)] | None = None
    temperature_c: Annotated[float, Meta(ge=-273.15)] | None = None
    online_activity_pct: Percent | None = None
    """Device activity minus offline busy time."""
    offline_busy_permille: Permille | None = None
    offline_inflation: Annotated[float, Meta(ge=0)] | None = None
    """Worst time of offline kernels relative to their own baselines; 1: as ever."""
    budget_permille: Permille | None = None
    offline: tuple[OfflineUsage, ...] = ()
    """Attempts that have run on it since the last message; only in telemetry."""
    taken_ns: TimeNs = 0
    """When these readings were taken, by the node's clock; only in telemetry, which is sent up to 0.2 s later."""


class NodeTelemetry(Event, frozen=True, kw_only=True):
    """All GPUs of a node, once a second."""

    node: str
    gpus: tuple[GpuSample, ...]


class DeviceState(Event, frozen=True, kw_only=True):
    """A device changed its state; or, with the epoch of what was told before, is still in it."""

    node: str
    gpu: str
    state: DeviceCondition
    previous: DeviceCondition | None = None
    """State before the change; null for the first."""
    since_ns: TimeNs
    cause: str = ""
    """Which reading crossed which threshold."""
    recovery: str = ""
    """What has to happen before the device takes new work, in words for people; empty when it does."""
    epoch: Count = 0
    """Number of the transition on the device page. The same one again is no new change."""
    budget_permille: Permille | None = None
    sample: GpuSample | None = None
    """The readings that caused the change; when it is told again, those of that moment."""


class DeviceFault(Event, frozen=True, kw_only=True):
    """Something went wrong on a device."""

    node: str
    gpu: str
    kind: str
    """``xid``, ``lost``, ``mps``, ``nvml``, ``clock``."""
    xid: Count | None = None
    message: str = ""
    contained: bool | None = None
    """Whether other processes on the GPU go on; null when that is not known."""


class EvictionAlert(Event, frozen=True, kw_only=True):
    """An offline job was put off a GPU: the online side needed it, or the job broke a rule that protects that side."""

    node: str
    gpu: str
    tenant: str
    job: str
    attempt: Count
    cause: str
    breach: bool = False
    """It broke a rule: the job fails."""
    workload: str | None = None
    """The online workload that was protected."""
    before: GpuSample | None = None
    """Readings at the decision."""
    after: GpuSample | None = None
    """Readings once the job was gone; null while it lasts."""
    decided_ns: TimeNs = 0
    total_ms: Milliseconds | None = None
    """From the decision to the last process gone; null while it lasts."""


class DeviceAlert(Event, frozen=True, kw_only=True):
    """A device needs a person."""

    node: str
    gpu: str
    severity: str = "warning"
    """``info``, ``warning``, ``critical``."""
    message: str


class OnlineAlert(Event, frozen=True, kw_only=True):
    """An online service misses its target or lost requests."""

    node: str
    gpu: str | None = None
    workload: str
    message: str
    latency_p99_ms: Milliseconds | None = None
    latency_target_ms: Milliseconds | None = None


class SloReport(Event, frozen=True, kw_only=True):
    """An online service's own word on its latency over the last window."""

    workload: str
    node: str | None = None
    gpu: str | None = None
    window_s: Seconds
    requests: Count
    lost: Count = 0
    latency_p50_ms: Milliseconds | None = None
    latency_p99_ms: Milliseconds | None = None
    latency_target_ms: Milliseconds | None = None
