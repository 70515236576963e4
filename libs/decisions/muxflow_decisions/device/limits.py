"""The limits that readings are held against, as data, and which of them hold.

A limit comes to hold when its reading has been beyond it for its delay, and holds until the reading is clear of it by
the hysteresis. A reading that is missing neither crosses a limit nor clears one; after a while it is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Final

import msgspec
from msgspec.structs import replace

from muxflow_decisions.device.policy import DevicePolicy
from muxflow_decisions.device.readings import Readings

_SECOND_NS: Final = 1_000_000_000
_MIB: Final = 2**20

# NVML's reasons for a lower clock (nvml.h, nvmlClocksEventReason…) that say that nothing wants a higher one.
_IDLE_REASON: Final = 0x1


class Level(StrEnum):
    """What a limit that holds means for the device."""

    UNHEALTHY = "unhealthy"
    OVERLIMIT = "overlimit"
    HARD = "hard"
    """Overlimit in which nothing may trickle."""


class Limit(msgspec.Struct, frozen=True):
    """One row of the table."""

    name: str
    level: Level
    reading: Callable[[Readings, DevicePolicy], float | None]
    """The value; None when it cannot be told."""
    enter: Callable[[DevicePolicy], float]
    leave: Callable[[DevicePolicy], float]
    after_s: Callable[[DevicePolicy], float]
    unit: str
    words: str
    """For people: `{value}` is the reading, `{enter}` the threshold."""
    below: bool = False
    """The limit is crossed downwards."""
    latency: bool = False
    """It is on what the online services report."""
    blind: bool = False
    """It says that something cannot be seen: a person has to look."""

    @property
    def key(self) -> str:
        """What its latch is kept under: a reading may have a limit on each level."""
        return f"{self.level.value}: {self.name}"

    def beyond(self, value: float, policy: DevicePolicy) -> bool:
        """Whether a value crosses the limit."""
        return value <= self.enter(policy) if self.below else value >= self.enter(policy)

    def clear(self, value: float, policy: DevicePolicy) -> bool:
        """Whether a value is far enough from the limit for it to hold no longer."""
        return value > self.leave(policy) if self.below else value < self.leave(policy)


class Latch(msgspec.Struct, frozen=True, kw_only=True):
    """One limit that is crossed, or on its way to it."""

    beyond_ns: int
    """Since when the reading has been beyond the limit."""
    seen_ns: int
    """When there was last a reading."""
    held: bool
    """It has been beyond for long enough, and has not been clear since."""
    words: str
    """The reading and the threshold, with numbers, as last seen beyond."""


def _activity(readings: Readings, _: DevicePolicy) -> float | None:
    return 0.0 if readings.online_present is False else readings.online_activity_pct


def _unknown_activity(readings: Readings, policy: DevicePolicy) -> float:
    return 1.0 if _activity(readings, policy) is None else 0.0


def _unknown_memory(readings: Readings, _: DevicePolicy) -> float:
    return 1.0 if readings.memory_used_bytes is None or readings.memory_total_bytes is None else 0.0


def _slo(readings: Readings, _: DevicePolicy) -> float | None:
    return readings.slo_ratio


def _clock(readings: Readings, policy: DevicePolicy) -> float | None:
    """Clock in per cent of the highest. An idle GPU clocks down by itself, and offline work at the power limit slows
    nobody but itself: without online activity this says nothing.
    """
    activity = _activity(readings, policy)
    if activity is not None and activity <= policy.activity_quiet_pct:
        return math.inf
    if readings.throttle_reasons is not None and readings.throttle_reasons & _IDLE_REASON:
        return math.inf
    if readings.sm_clock_mhz is None or not readings.sm_clock_max_mhz:
        return None
    return 100.0 * readings.sm_clock_mhz / readings.sm_clock_max_mhz


def _temperature(readings: Readings, _: DevicePolicy) -> float | None:
    return readings.temperature_c


def _free_mib(readings: Readings) -> float | None:
    if readings.memory_used_bytes is None or readings.memory_total_bytes is None:
        return None
    return (readings.memory_total_bytes - readings.memory_used_bytes) / _MIB


def _shared_free_mib(readings: Readings, _: DevicePolicy) -> float | None:
    """Free memory, if offline work holds some of the rest: only then does evicting it help."""
    return math.inf if readings.offline_memory_bytes == 0 else _free_mib(readings)


def _unshared_free_mib(readings: Readings, _: DevicePolicy) -> float | None:
    """Free memory, if the online side alone has taken the rest: there is only no room for anybody else."""
    return _free_mib(readings) if readings.offline_memory_bytes == 0 else math.inf


LIMITS: Final = (
    Limit(
        "memory exhausted",
        Level.HARD,
        _shared_free_mib,
        enter=lambda policy: policy.memory_reserve_mib,
        leave=lambda policy: policy.memory_clear_mib,
        after_s=lambda _: 0.0,
        unit="MiB free",
        words="{value:.0f} MiB of memory free, {enter:.0f} are reserved",
        below=True,
    ),
    Limit(
        "online activity",
        Level.OVERLIMIT,
        _activity,
        enter=lambda policy: policy.activity_overlimit_pct,
        leave=lambda policy: policy.activity_overlimit_clear_pct,
        after_s=lambda policy: policy.overlimit_after_s,
        unit="%",
        words="online activity {value:.0f} % ≥ {enter:.0f} %",
    ),
    Limit(
        "latency",
        Level.OVERLIMIT,
        _slo,
        enter=lambda policy: policy.slo_overlimit_ratio,
        leave=lambda policy: policy.slo_overlimit_clear_ratio,
        after_s=lambda policy: policy.overlimit_after_s,
        unit="× target",
        words="online latency {value:.2f} × target ≥ {enter:.2f}",
        latency=True,
    ),
    Limit(
        "clock",
        Level.OVERLIMIT,
        _clock,
        enter=lambda policy: policy.clock_overlimit_pct,
        leave=lambda policy: policy.clock_overlimit_clear_pct,
        after_s=lambda policy: policy.overlimit_after_s,
        unit="% of maximum",
        words="SM clock {value:.0f} % of its maximum ≤ {enter:.0f} %",
        below=True,
    ),
    Limit(
        "temperature",
        Level.OVERLIMIT,
        _temperature,
        enter=lambda policy: policy.temperature_overlimit_c,
        leave=lambda policy: policy.temperature_overlimit_clear_c,
        after_s=lambda policy: policy.overlimit_after_s,
        unit="°C",
        words="{value:.0f} °C ≥ {enter:.0f} °C",
    ),
    Limit(
        "online activity",
        Level.UNHEALTHY,
        _activity,
        enter=lambda policy: policy.activity_unhealthy_pct,
        leave=lambda policy: policy.activity_unhealthy_clear_pct,
        after_s=lambda policy: policy.unhealthy_after_s,
        unit="%",
        words="online activity {value:.0f} % ≥ {enter:.0f} %",
    ),
    Limit(
        "latency",
        Level.UNHEALTHY,
        _slo,
        enter=lambda policy: policy.slo_unhealthy_ratio,
        leave=lambda policy: policy.slo_unhealthy_clear_ratio,
        after_s=lambda policy: policy.unhealthy_after_s,
        unit="× target",
        words="online latency {value:.2f} × target ≥ {enter:.2f}",
        latency=True,
    ),
    Limit(
        "clock",
        Level.UNHEALTHY,
        _clock,
        enter=lambda policy: policy.clock_unhealthy_pct,
        leave=lambda policy: policy.clock_unhealthy_clear_pct,
        after_s=lambda policy: policy.slow_after_s,
        unit="% of maximum",
        words="SM clock {value:.0f} % of its maximum ≤ {enter:.0f} %",
        below=True,
    ),
    Limit(
        "temperature",
        Level.UNHEALTHY,
        _temperature,
        enter=lambda policy: policy.temperature_unhealthy_c,
        leave=lambda policy: policy.temperature_unhealthy_clear_c,
        after_s=lambda policy: policy.slow_after_s,
        unit="°C",
        words="{value:.0f} °C ≥ {enter:.0f} °C",
    ),
    Limit(
        "memory taken",
        Level.UNHEALTHY,
        _unshared_free_mib,
        enter=lambda policy: policy.memory_reserve_mib,
        leave=lambda policy: policy.memory_clear_mib,
        after_s=lambda policy: policy.unhealthy_after_s,
        unit="MiB free",
        words="{value:.0f} MiB of memory free, {enter:.0f} are reserved, and none of it is offline",
        below=True,
    ),
    Limit(
        "activity unknown",
        Level.UNHEALTHY,
        _unknown_activity,
        enter=lambda _: 1.0,
        leave=lambda _: 1.0,
        after_s=lambda policy: policy.unknown_after_s,
        unit="",
        words="online activity is not known, and an online service may be present",
        blind=True,
    ),
    Limit(
        "memory unknown",
        Level.UNHEALTHY,
        _unknown_memory,
        enter=lambda _: 1.0,
        leave=lambda _: 1.0,
        after_s=lambda policy: policy.unknown_after_s,
        unit="",
        words="the device's memory is not known",
        blind=True,
    ),
)
"""In the order in which they are named as causes, the gravest first."""


def look(latches: Mapping[str, Latch], readings: Readings, policy: DevicePolicy) -> dict[str, Latch]:
    """Hold one sample against all limits; gives those that hold or are on their way to it."""
    now_ns = readings.now_ns
    found = {}
    for limit in LIMITS:
        latch = _latched(limit, latches.get(limit.key), limit.reading(readings, policy), now_ns, policy)
        if latch is not None:
            found[limit.key] = latch
    return found


def _latched(
    limit: Limit, before: Latch | None, value: float | None, now_ns: int, policy: DevicePolicy
) -> Latch | None:
    held = before is not None and before.held
    if value is None:
        if before is not None and held and now_ns - before.seen_ns < policy.forget_after_s * _SECOND_NS:
            return before
        return None
    if limit.beyond(value, policy):
        beyond_ns = now_ns if before is None else before.beyond_ns
        return Latch(
            beyond_ns=beyond_ns,
            seen_ns=now_ns,
            held=held or now_ns - beyond_ns >= limit.after_s(policy) * _SECOND_NS,
            words=limit.words.format(value=value, enter=limit.enter(policy)),
        )
    if before is not None and held and not limit.clear(value, policy):
        return replace(before, seen_ns=now_ns)
    return None


def holding(latches: Mapping[str, Latch], level: Level | None = None) -> Iterator[tuple[Limit, Latch]]:
    """Go through the limits that hold, of one level or of all, the gravest first."""
    if not latches:  # nearly always, and asked several times a sample
        return
    for limit in LIMITS:
        latch = latches.get(limit.key)
        if latch is not None and latch.held and level in (None, limit.level):
            yield limit, latch
