"""``profiles``: what is measured of jobs alone, of services, and of jobs beside services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from muxflow.cli import output
from muxflow.cli.ages import age
from muxflow.cli.command import Session, command
from muxflow.cli.readings import UNKNOWN, percent, permille
from muxflow.sizes import format_size

if TYPE_CHECKING:
    from muxflow.contracts import CorunProfile, OfflineProfile, OnlineProfile

_JOBS: Final = ["JOB", "GPU", "LAUNCHES/S", "BUSY", "MEMORY", "SM SHARE", "AGE", "NOTE"]
_SERVICES: Final = ["SERVICE", "GPU", "NOW", "P99", "FORECAST", "MEMORY", "GPUS", "AGE"]
_PAIRS: Final = ["JOB", "BESIDE", "GPU", "SPEED", "SM SHARE", "ONLINE", "FITS", "MEASURED", "AGE"]


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "muxflow profiles", "muxflow profiles --json | jq '.corun[].normalized_throughput'")(profiles)


async def profiles(session: Session) -> None:
    """List what was measured: jobs alone, services and their forecast, jobs beside services.

    A job that could not be measured says why; it runs all the same. NOW and P99 are a service's activity in the last
    minutes, FORECAST the peak that is expected until the end of the next interval of the day. SPEED is that of the job
    beside the service, relative to alone.
    """
    async with session.connect() as client:
        found = await client.profiles()
    if session.as_json:
        output.json(found)
        return
    tables = (
        (_JOBS, [_job(job) for job in found.offline]),
        (_SERVICES, [_service(service) for service in found.online]),
        (_PAIRS, [_pair(pair) for pair in found.corun]),
    )
    told = [(columns, rows) for columns, rows in tables if rows]
    for number, (columns, rows) in enumerate(told):
        if number:
            output.line("")
        output.table(columns, rows, wide=columns[-1])
    if not told:
        output.line("nothing is measured yet")


def _job(job: OfflineProfile) -> list[output.Cell]:
    error = f" ± {100 * job.launches_relative_error:.0f}%" if job.launches_relative_error is not None else ""
    return [
        job.key,
        job.gpu_kind,
        UNKNOWN if job.launches_per_s is None else f"{job.launches_per_s:.0f}{error}",
        permille(job.busy_permille),
        _size(job.memory_peak_bytes),
        percent(job.sm_share_pct),
        age(job.time_ns),
        job.failure or UNKNOWN,
    ]


def _service(service: OnlineProfile) -> list[output.Cell]:
    return [
        service.workload,
        service.gpu_kind,
        percent(service.activity_pct_mean),
        percent(service.activity_pct_p99),
        percent(service.forecast_peak_pct),
        _size(service.memory_peak_bytes),
        str(service.gpus),
        age(service.time_ns),
    ]


def _pair(pair: CorunProfile) -> list[output.Cell]:
    return [
        pair.offline_key,
        pair.workload,
        pair.gpu_kind,
        UNKNOWN if pair.normalized_throughput is None else percent(100 * pair.normalized_throughput),
        percent(pair.sm_share_pct),
        percent(pair.online_activity_pct),
        UNKNOWN if pair.fits is None else "yes" if pair.fits else "no",
        f"{pair.measured_s:.0f} s" if pair.measured_s else UNKNOWN,
        age(pair.time_ns),
    ]


def _size(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else format_size(size_bytes)
