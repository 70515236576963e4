"""What is measured of programs on a device: the figures that the profiler has on a live system, in less time."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Final

import msgspec

from muxflow_decisions.speed import MeasuredPair, PairFacts
from muxflow_decisions.speed.evaluation import quantile
from muxflow_device.pages import DeviceReport, JobUsage
from muxflow_predictor.sample import node
from muxflow_predictor.sample.plan import OfflineProgram, OnlineProgram, PlannedPair

_LOOK_S: Final = 0.1
_FOREVER_S: Final = 3600.0


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long things are looked at."""

    settle_s: float
    """From the start of a program until what is measured is steady: NVML's windows and the budget law take so long."""
    measure_s: float


class OfflineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """An offline program alone."""

    utilization_pct: float | None
    sm_activity_pct: float | None
    sm_occupancy_pct: float | None
    bandwidth_pct: float | None
    memory_bytes: int
    busy_permille: int
    kernel_time_us: float
    launches_per_s: float
    waited: float
    """Share of the time that it waited for a CPU of this machine."""


class OnlineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A service alone."""

    activity_pct: float
    activity_p99_pct: float
    memory_bytes: int
    waited: float


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """A program beside a service."""

    launches_per_s: float
    activity_pct: float | None
    measured_s: float
    waited: float
    """The longer wait of both."""


async def offline_alone(device: node.Device, workloads: Path, program: OfflineProgram, pace: Pace) -> OfflineFigures:
    """Measure a program with the whole device for itself. Raises `SampleError`."""
    await device.calm()
    arguments = program.arguments(device.kind)
    async with node.job(device, workloads, program.name, arguments, sm_share_pct=None) as job:
        await asyncio.sleep(pace.settle_s)
        before, waited = Instant.of(job.usage()), Waiting(job.pid)
        reports = [report async for report in looks(device, pace.measure_s)]
        usage = job.usage()
        after, share = Instant.of(usage), waited.share()
    newest = device.newest
    launches, seconds = after.launches - before.launches, (after.time_ns - before.time_ns) / 1e9
    if not launches:
        raise node.SampleError(f"{program.name} has launched nothing on {device.kind}")
    busy_ns = after.busy_ns - before.busy_ns
    return OfflineFigures(
        utilization_pct=_mean_pct(report.utilization_permille for report in reports),
        sm_activity_pct=_mean_pct(report.sm_activity_permille for report in reports),
        sm_occupancy_pct=_rounded(newest.sm_occupancy_pct if newest else None),
        bandwidth_pct=_rounded(newest.memory_bandwidth_pct if newest else None),
        memory_bytes=usage.memory_bytes,
        busy_permille=min(1000, round(busy_ns / seconds / 1e6)),
        kernel_time_us=round(busy_ns / launches / 1000, 1),
        launches_per_s=round(launches / seconds, 1),
        waited=round(share, 3),
    )


async def online_alone(device: node.Device, workloads: Path, program: OnlineProgram, pace: Pace) -> OnlineFigures:
    """Measure a service with nobody beside it. Raises `SampleError`."""
    await device.calm()
    async with node.service(device, workloads, program.arguments(device.kind, seconds=_FOREVER_S)) as pid:
        await asyncio.sleep(pace.settle_s)
        waited = Waiting(pid)
        reports = [report async for report in looks(device, pace.measure_s)]
        share = waited.share()
    activities = sorted(
        report.online_activity_permille / 10 for report in reports if report.online_activity_permille is not None
    )
    if not activities:
        raise node.SampleError(f"the activity of {program.name} on {device.kind} is not known")
    return OnlineFigures(
        activity_pct=round(statistics.fmean(activities), 2),
        activity_p99_pct=round(quantile(activities, 0.99), 2),
        memory_bytes=max(report.memory_used_bytes or 0 for report in reports),
        waited=round(share, 3),
    )


async def beside(
    device: node.Device,
    workloads: Path,
    offline: OfflineProgram,
    online: OnlineProgram,
    *,
    sm_share_pct: int,
    pace: Pace,
) -> Beside:
    """Measure a program beside a service. Raises `SampleError`."""
    await device.calm()
    async with node.service(device, workloads, online.arguments(device.kind, seconds=_FOREVER_S)) as service_pid:
        arguments = offline.arguments(device.kind)
        async with node.job(device, workloads, offline.name, arguments, sm_share_pct=sm_share_pct) as job:
            await asyncio.sleep(pace.settle_s)
            before, waits = Instant.of(job.usage()), (Waiting(job.pid), Waiting(service_pid))
            reports = [report async for report in looks(device, pace.measure_s)]
            after, waited = Instant.of(job.usage()), max(each.share() for each in waits)
    seconds = (after.time_ns - before.time_ns) / 1e9
    return Beside(
        launches_per_s=(after.launches - before.launches) / seconds,
        activity_pct=_mean_pct(report.online_activity_permille for report in reports),
        measured_s=round(seconds, 2),
        waited=round(waited, 3),
    )


def row(
    pair: PlannedPair, alone: OfflineFigures, service: OnlineFigures, found: Beside, *, gpu_memory_bytes: int
) -> MeasuredPair:
    """Make a row of it. The programs fitted, else nothing had been measured."""
    return MeasuredPair(
        offline_key=f"simulated/{pair.offline}",
        workload=f"simulated-{pair.online}",
        gpu_kind=pair.kind,
        facts=PairFacts(
            gpu_memory_bytes=gpu_memory_bytes,
            sm_share_pct=pair.sm_share_pct,
            offline_utilization_pct=alone.utilization_pct,
            offline_sm_activity_pct=alone.sm_activity_pct,
            offline_sm_occupancy_pct=alone.sm_occupancy_pct,
            offline_bandwidth_pct=alone.bandwidth_pct,
            offline_memory_bytes=alone.memory_bytes,
            offline_busy_permille=alone.busy_permille,
            offline_kernel_time_us=alone.kernel_time_us,
            offline_launches_per_s=alone.launches_per_s,
            online_activity_pct=found.activity_pct if found.activity_pct is not None else service.activity_pct,
            online_activity_p99_pct=service.activity_p99_pct,
            online_memory_bytes=service.memory_bytes,
        ),
        normalized_throughput=round(found.launches_per_s / alone.launches_per_s, 4),
        fits=True,
        measured_s=found.measured_s,
        time_ns=time.time_ns(),
        simulated=True,
    )


class Instant(msgspec.Struct, frozen=True):
    """Totals of a job at one moment."""

    time_ns: int
    launches: int
    busy_ns: int

    @classmethod
    def of(cls, usage: JobUsage) -> Instant:
        return cls(time.monotonic_ns(), usage.launches, usage.busy_ns)


class Waiting:
    """How long a program's threads have waited for a CPU, from now on: what it does not do then is not the GPU's doing.

    The thread that launches and the one of xCUDA that completes hold each other up, so their waits are added.
    """

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._begin_ns, self._waited_ns = time.monotonic_ns(), self._read()

    def share(self) -> float:
        """Give the share of the time since then."""
        return (self._read() - self._waited_ns) / max(1, time.monotonic_ns() - self._begin_ns)

    def _read(self) -> int:
        waited_ns = 0
        for path in self._tasks.glob("*/schedstat"):
            with contextlib.suppress(OSError, IndexError):
                waited_ns += int(path.read_text().split()[1])
        return waited_ns


async def looks(device: node.Device, seconds: float) -> AsyncIterator[DeviceReport]:
    """Look at what the monitor says, ten times a second."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        await asyncio.sleep(_LOOK_S)
        if (report := device.look().report) is not None:
            yield report


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _mean_pct(values: Iterable[int | None]) -> float | None:
    known = [value / 10 for value in values if value is not None]
    return round(statistics.fmean(known), 2) if known else None
