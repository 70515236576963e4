"""Readings as they are sent: one GPU at one instant."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from muxflow.attempts import attempt_from_name
from muxflow.contracts import GpuSample, OfflineUsage
from muxflow_decisions.device import Readings
from muxflow_decisions.device.memory import DeviceMemory
from muxflow_device.attribution.jobs import OfflineJob, job_memory_bytes
from muxflow_device.attribution.processes import Crowd


def sample_of(gpu: str, readings: Readings, memory: DeviceMemory) -> GpuSample:
    """Put a look and what was decided from it together."""
    return GpuSample(
        gpu=gpu,
        state=memory.condition,
        utilization_pct=readings.utilization_pct,
        sm_activity_pct=readings.sm_activity_pct,
        sm_occupancy_pct=readings.sm_occupancy_pct,
        memory_bandwidth_pct=readings.memory_bandwidth_pct,
        memory_used_bytes=readings.memory_used_bytes,
        memory_total_bytes=readings.memory_total_bytes,
        offline_memory_bytes=readings.offline_memory_bytes,
        sm_clock_mhz=readings.sm_clock_mhz,
        throttle_reasons=readings.throttle_reasons,
        power_w=readings.power_w,
        temperature_c=readings.temperature_c,
        online_activity_pct=readings.online_activity_pct,
        offline_busy_permille=readings.offline_busy_permille,
        offline_inflation=readings.inflation_permille / 1000 if readings.inflation_permille is not None else None,
        budget_permille=memory.gate.budget_permille,
    )


def blank(gpu: str, memory: DeviceMemory) -> GpuSample:
    """Say of a GPU that does not answer what is known: its state."""
    return GpuSample(gpu=gpu, state=memory.condition, budget_permille=memory.gate.budget_permille)


def with_offline(
    sample: GpuSample, jobs: Iterable[OfflineJob], ended: Iterable[OfflineJob], crowd: Crowd | None, *, taken_ns: int
) -> GpuSample:
    """Make of a sample what telemetry tells: when it was taken, what the attempts there have used, and what those had
    that have gone since the last message. `taken_ns` is CLOCK_REALTIME.
    """
    usages = [usage_of(job, job_memory_bytes(job, crowd)) for job in jobs] + [usage_of(job, 0) for job in ended]
    return replace(sample, taken_ns=taken_ns, offline=tuple(usage for usage in usages if usage is not None))


def usage_of(job: OfflineJob, memory_bytes: int) -> OfflineUsage | None:
    """Tell what an attempt has used since it began; None for one whose names were too long for its directory's name."""
    attempt = attempt_from_name(job.name)
    if attempt is None:
        return None
    usage = job.usage
    return OfflineUsage(
        tenant=attempt.tenant,
        job=attempt.job,
        attempt=attempt.attempt,
        launches=usage.launches,
        busy_us=usage.busy_ns // 1000,
        throttled_us=usage.throttled_ns // 1000,
        frozen_us=usage.frozen_ns // 1000,
        refused_bytes=usage.refused_bytes,
        memory_bytes=memory_bytes,
    )
