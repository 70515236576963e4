"""Readings of a GPU in a few characters. What is not known is ``-``, never 0."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from muxflow.cli.ages import duration

if TYPE_CHECKING:
    from muxflow.contracts import DeviceSummary, GpuSample

STALE_S: Final = 5.0
"""Telemetry comes once a second; readings that are older say that something is away."""

UNKNOWN: Final = "-"

_THROTTLED: Final = {
    0x2: "set clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "too hot (driver)",
    0x40: "too hot (hardware)",
    0x80: "power brake",
}
"""NVML's reasons for a lower clock (nvml.h, nvmlClocksEventReason…), without 0x1: nothing wants a higher one."""
_CLOSED: Final = frozenset({"init", "overlimit", "disabled"})
"""States in which a device's gate is frozen, or lets a job through that saves its state, under a budget of its own."""
_GIB: Final = 2**30


def percent(value: float | None) -> str:
    """Say ``62%``."""
    return UNKNOWN if value is None else f"{value:.0f}%"


def permille(value: float | None) -> str:
    """Say thousandths as ``80%``."""
    return UNKNOWN if value is None else f"{value / 10:.0f}%"


def budget(device: DeviceSummary) -> str:
    """Say for how much of the time offline work may run: ``80%``; ``-`` too where only a job that saves still may."""
    return UNKNOWN if device.state in _CLOSED else permille(device.budget_permille)


def busy(sample: GpuSample | None) -> str:
    """Say how busy the whole GPU is: ``62% SM`` where SMs can be counted, else ``62% time``, as NVML's utilization."""
    if sample is not None and sample.sm_activity_pct is not None:
        return f"{sample.sm_activity_pct:.0f}% SM"
    if sample is not None and sample.utilization_pct is not None:
        return f"{sample.utilization_pct:.0f}% time"
    return UNKNOWN


def memory(sample: GpuSample | None, total_bytes: int) -> str:
    """Say how much memory is in use, of how much: ``3.2/16 GiB``."""
    total = f"{total_bytes / _GIB:.0f} GiB"
    if sample is None or sample.memory_used_bytes is None:
        return total
    return f"{sample.memory_used_bytes / _GIB:.1f}/{total}"


def online(device: DeviceSummary) -> str:
    """Say who is served and how busy that is: ``chat 40%``."""
    activity = device.sample.online_activity_pct if device.sample else None
    if device.workload is None:
        return UNKNOWN if activity is None else percent(activity)
    return device.workload if activity is None else f"{device.workload} {activity:.0f}%"


def offline(device: DeviceSummary) -> str:
    """Say which job is there and for how much of the time its kernels run: ``default/x#1 55%``."""
    if device.job is None:
        return UNKNOWN
    running = device.sample.offline_busy_permille if device.sample else None
    job = f"{device.tenant}/{device.job}#{device.attempt}"
    return job if running is None else f"{job} {permille(running)}"


def state(device: DeviceSummary) -> str:
    """Say the device's state in a word; of one that nobody watches, that."""
    if not device.watched:
        return "unwatched"
    if not device.alive:
        return "lost"
    return device.state.value if device.state else "unknown"


def stale(device: DeviceSummary, now_ns: int | None = None) -> str | None:
    """Say that a watched device's readings are old; None if they are not."""
    if not device.watched or not device.sampled_ns:
        return None
    age_s = ((time.time_ns() if now_ns is None else now_ns) - device.sampled_ns) / 1e9
    return f"no readings for {duration(age_s)}" if age_s > STALE_S else None


def throttled(reasons: int | None) -> str | None:
    """Say why the clock is lower than it could be; None if it is not, or nobody knows."""
    words = [word for bit, word in _THROTTLED.items() if (reasons or 0) & bit]
    return ", ".join(words) or None
