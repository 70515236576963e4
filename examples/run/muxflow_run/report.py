"""What a run writes: ``run.json``. Every figure says in its name what unit it has; what is not known is null.

Times ``…_s`` count from the begin of the phase's measured window: what is negative was before it.
"""

from __future__ import annotations

import msgspec

from muxflow_run.host import Host, HostFigures


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio and its 95% interval (paired block bootstrap over seconds with the same requests)."""

    ratio: float
    low: float
    high: float


class Second(msgspec.Struct, frozen=True, kw_only=True):
    """One service in one second, by when its requests were due."""

    requests: int
    lost: int
    p50_ms: float | None
    p99_ms: float | None


class ServiceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One online service over a phase."""

    service: str
    gpu: str
    requests: int
    lost: int
    """Requests that got no answer."""
    p50_ms: float | None
    p99_ms: float | None
    device_p50_ms: float | None = None
    """The GPU's part of a request: the time of its kernels, from when each could run to its end (device log). Neither
    waiting in line is in it nor what the machine's cores cost."""
    device_p99_ms: float | None = None
    p50_ratio: Interval | None = None
    """To phase ``alone``."""
    p99_ratio: Interval | None = None
    seconds: tuple[Second, ...] = ()


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Readings of one GPU, as telemetry tells them once a second."""

    at_s: float
    state: str | None
    utilization_pct: float | None
    sm_activity_pct: float | None
    memory_used_pct: float | None
    online_activity_pct: float | None
    offline_busy_pct: float | None
    budget_pct: float | None


class GpuFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU over a phase. Readings are means over the window."""

    gpu: str
    kind: str
    service: str | None
    utilization_pct: float | None
    sm_activity_pct: float | None
    """Null where the GPU has no such counters: a T4 and an A100 have none."""
    memory_used_pct: float | None
    online_activity_pct: float | None
    offline_busy_pct: float | None
    budget_pct: float | None
    offline_share: float | None
    """Offline work done / what would be done alone in exactly the online side's idle time (device log)."""
    normalized_throughput: float | None
    """Offline work per second / what the GPU does undisturbed, online side and budget not counted (device log)."""
    freezes: int
    evictions: int
    samples: tuple[Sample, ...] = ()


class JobFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One job of the queue at the end of the window."""

    job: str
    size: str
    priority: int
    state: str
    attempts: int
    evictions: int
    submitted_s: float | None
    ended_s: float | None


class PlacementFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a job on a GPU."""

    job: str
    size: str
    attempt: int
    gpu: str
    service: str | None
    purpose: str
    from_s: float
    to_s: float | None
    """Null: it was still there at the end of the window."""
    sm_share_pct: int | None
    predicted: float | None
    """Normalized throughput, as the predictor said when the attempt began."""
    predicted_low: float | None
    predicted_high: float | None
    basis: str | None
    """What the prediction came from: measured, model, assumed."""
    measured: float | None
    """What it got in the window, relative to when jobs of its key were measured alone."""
    measured_by: str | None
    """``launches``: its launches per second / those alone on that kind of GPU. ``device log``: where they were measured
    on another kind only, work per second / the share of time that they kept that one busy."""
    corun: float | None
    """The profiler's newest word on its key beside that service on that kind of GPU."""
    work_per_s: float | None
    """Seconds of undisturbed device time that it got done per second in the window (device log)."""


class SolveFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One solve of the matching and its certificate: `cost` equals `bound`, the least that any matching can cost."""

    at_s: float
    trigger: str
    jobs: int
    gpus: int
    placed: int
    moved: int
    throughput: float | None
    cost: int
    bound: int
    solve_ms: float


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The model of speeds that served at the end of the phase."""

    version: str
    trained_rows: int
    held_out_rows: int
    evaluation: dict[str, float]
    """Metric to value, on measurements that are in no training set."""
    measured_on: str


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """Something that people are told."""

    at_s: float
    gpu: str | None
    kind: str
    """``state``, ``alert``, ``job``."""
    words: str


class PhaseFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One phase. Keys with a plain name are those of `make bench-protection`."""

    seconds: float
    """Length of the measured window."""
    warm_up_s: float
    """From the first request to the window."""
    note: str
    """What ran, in words."""
    online_requests: int
    online_requests_lost: int
    online_p99_ratio: float | None
    """p99 / p99 alone: median over services."""
    online_p99_ratio_low: float | None
    online_p99_ratio_high: float | None
    online_device_p99_ratio: float | None
    """The same for the GPU's part of each request (device log): what cores that are busy cost is not in it."""
    offline_share: float | None
    """Over all GPUs with an online service."""
    offline_share_all: float | None
    """Over all GPUs."""
    normalized_throughput: float | None
    """Mean over all GPUs."""
    jobs_done: int | None
    """Finished since the phase began, warm-up included."""
    freezes: int
    evictions: int
    host: HostFigures
    services: tuple[ServiceFigures, ...]
    gpus: tuple[GpuFigures, ...]
    jobs: tuple[JobFigures, ...] = ()
    placements: tuple[PlacementFigures, ...] = ()
    solves: tuple[SolveFigures, ...] = ()
    model: ModelFigures | None = None
    happenings: tuple[Happening, ...] = ()
    missing: dict[str, str] = {}
    """Figures that are null here, and why."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A promise, and whether this run keeps it."""

    promise: str
    figure: float | None
    bound: float
    holds: bool | None
    """Null: it could not be measured here."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    matching: str
    prediction: str
    dynamic_sm: str
    window_s: float
    time_scale: float
    seed: int
    gpus: tuple[str, ...]
    overrides: tuple[str, ...]
    """Settings of MuxFlow that differ from its own defaults."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    simulated: bool
    """True: GPUs were simulated, all figures of devices are bounds for regressions and no claims."""
    date: str
    command: str
    versions: dict[str, str]
    machine: Host
    settings: Settings
    seconds: float
    """Of the whole run."""
    figures: dict[str, float | int | None]
    """Those of `make bench-protection`."""
    verdicts: tuple[Verdict, ...]
    phases: dict[str, PhaseFigures]
    """``alone``, ``unprotected``, ``protected``, ``alone_again``, in this order."""
    troubles: tuple[str, ...] = ()
    """What went wrong without ending the run."""


def encode(report: Report) -> bytes:
    """Write it as JSON for people and programs."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def decode(data: bytes) -> Report:
    """Read it back. msgspec.DecodeError if it is none."""
    return msgspec.json.decode(data, type=Report)
