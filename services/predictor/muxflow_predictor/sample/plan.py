"""Which pairs are measured: programs, services and SM shares that cover what there may be, with few points.

Points are of Halton sequences: each prefix covers the space about evenly, so that a plan that was cut off is a smaller
one. Widths are relative to the device, times are logarithmic. The same numbers give the same plan.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from scipy.stats import qmc  # type: ignore[import-untyped]

BLOCKS: Final = {"T4": 40, "A100": 216, "H200": 264}
"""Blocks of 1,024 threads that each kind holds at once."""
BANDWIDTH_GBPS: Final = {"T4": 320, "A100": 1555, "H200": 4800}
"""Of the device's memory, in 10⁹ bytes/s; a kernel that copies gets nine tenths of it, and each byte counts twice."""
KERNEL_US_MAX: Final = 3000.0


class OfflineProgram(msgspec.Struct, frozen=True, kw_only=True):
    """An offline job: batches of kernels, as fast as the device takes them."""

    name: str
    width: float
    """Share of the device's blocks that a kernel asks for."""
    kernel_us: int
    """Of a kernel, alone, if the width is all that holds it up."""
    memory_bound: bool
    """Its kernels copy memory; else they keep SMs busy."""
    kernels: int
    """Launched at once, before it waits for them."""

    def arguments(self, kind: str) -> dict[str, int | str]:
        """Options of ``offline_job.py``, by name."""
        blocks = max(1, round(self.width * BLOCKS[kind]))
        shared: dict[str, int | str] = {"blocks": blocks, "kernels": self.kernels, "save-every": 0, "report-s": 0}
        if self.memory_bound:
            copied = max(1, round(0.9 * BANDWIDTH_GBPS[kind] * 1e3 * self.kernel_us / 2 / 2**20))
            return shared | {"bound": "memory", "copy-mib": copied, "memory-mib": 2 * copied + 256}
        return shared | {"bound": "compute", "kernel-us": self.kernel_us, "memory-mib": 256}


class OnlineProgram(msgspec.Struct, frozen=True, kw_only=True):
    """An online service under open-loop load."""

    name: str
    rate_per_s: float
    activity: float
    """Share of the time that its requests would take one after the other, alone: 0 to 1."""
    width: float

    def arguments(self, kind: str, *, seconds: float) -> dict[str, int | float]:
        """Options of ``online_service.py``, by name."""
        request_us = 1e6 * self.activity / self.rate_per_s
        kernels = max(2, round(request_us / KERNEL_US_MAX))
        return {
            "rate": round(self.rate_per_s, 3),
            "seconds": seconds,
            "kernels": kernels,
            "kernel-us": max(20, round(request_us / kernels)),
            "blocks": max(1, round(self.width * BLOCKS[kind])),
            "memory-mib": 512,
        }


class PlannedPair(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement."""

    kind: str
    offline: str
    online: str
    sm_share_pct: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: every program alone on every kind, and the pairs."""

    offline: tuple[OfflineProgram, ...]
    online: tuple[OnlineProgram, ...]
    pairs: tuple[PlannedPair, ...]


def plan(*, kinds: tuple[str, ...], programs: int, services: int, pairs: int, seed: int) -> Plan:
    """Make a plan of `pairs` pairs for each kind."""
    offline = tuple(_offline(number, point) for number, point in enumerate(_points(programs, 4, seed)))
    online = tuple(_online(number, point) for number, point in enumerate(_points(services, 3, seed + 1)))
    chosen = [
        PlannedPair(
            kind=kind,
            offline=offline[int(point[0] * programs)].name,
            online=online[int(point[1] * services)].name,
            sm_share_pct=10 + round(float(point[2]) * 80),
        )
        for order, kind in enumerate(kinds)
        for point in _points(pairs, 3, seed + 2 + order)
    ]
    return Plan(offline=offline, online=online, pairs=tuple(chosen))


def _offline(number: int, point: Any) -> OfflineProgram:
    width, length, kernels, bound = map(float, point)
    return OfflineProgram(
        name=f"offline-{number:02}",
        width=round(_between(0.06, 1.0, width), 3),
        kernel_us=round(_between_log(100, KERNEL_US_MAX, length)),
        memory_bound=bound < 0.3,
        kernels=round(_between_log(4, 40, kernels)),
    )


def _online(number: int, point: Any) -> OnlineProgram:
    rate, activity, width = map(float, point)
    return OnlineProgram(
        name=f"online-{number:02}",
        rate_per_s=round(_between_log(8, 80, rate), 2),
        activity=round(_between(0.02, 0.85, activity), 3),
        width=round(_between(0.1, 1.0, width), 3),
    )


def _points(count: int, dimensions: int, seed: int) -> Any:
    return qmc.Halton(d=dimensions, scramble=True, seed=seed).random(count)


def _between(low: float, high: float, share: float) -> float:
    return low + share * (high - low)


def _between_log(low: float, high: float, share: float) -> float:
    return float(low * (high / low) ** share)
