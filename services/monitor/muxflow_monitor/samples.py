"""Readings as they are sent: one GPU at one instant."""

from __future__ import annotations

from muxflow.contracts import GpuSample
from muxflow_decisions.device import Readings
from muxflow_decisions.device.memory import DeviceMemory


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
        budget_permille=memory.gate.budget_permille,
    )


def blank(gpu: str, memory: DeviceMemory) -> GpuSample:
    """Say of a GPU that does not answer what is known: its state."""
    return GpuSample(gpu=gpu, state=memory.condition, budget_permille=memory.gate.budget_permille)
