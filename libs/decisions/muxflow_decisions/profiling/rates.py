"""Rates from totals: what an attempt has used between two messages."""

from __future__ import annotations

from typing import Final

import msgspec

from muxflow.contracts import OfflineUsage

_SECOND_NS: Final = 1_000_000_000


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt had used at one time."""

    time_ns: int
    """When that was read, by the clock of its node."""
    usage: OfflineUsage


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt has used between two readings. Nothing in it is negative."""

    seconds: float
    launches: int
    busy_us: int
    throttled_us: int
    frozen_us: int
    refused_bytes: int

    @property
    def launches_per_s(self) -> float:
        return self.launches / self.seconds

    @property
    def frozen_share(self) -> float:
        """Part of the time for which one of its threads waited at a frozen gate; more than 1 with several threads."""
        return self.frozen_us / 1e6 / self.seconds


def step(before: Reading, after: Reading) -> Step | None:
    """Take the difference. None where there is none: time that stood still or went backwards, and totals that fell, as
    they do when a new monitor counts without those that ended before it came.
    """
    was, now = before.usage, after.usage
    found = Step(
        seconds=(after.time_ns - before.time_ns) / _SECOND_NS,
        launches=now.launches - was.launches,
        busy_us=now.busy_us - was.busy_us,
        throttled_us=now.throttled_us - was.throttled_us,
        frozen_us=now.frozen_us - was.frozen_us,
        refused_bytes=now.refused_bytes - was.refused_bytes,
    )
    totals = (found.launches, found.busy_us, found.throttled_us, found.frozen_us, found.refused_bytes)
    return found if found.seconds > 0 and min(totals) >= 0 else None
