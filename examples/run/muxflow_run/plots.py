"""Which plots a report has, and what is drawn in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from xml.etree.ElementTree import Element

from muxflow_run.charts import Bar, Dot, Lane, Line, Mark, Span, bars, lanes, lines, points
from muxflow_run.report import GpuFigures, PhaseFigures, PlacementFigures, Report, Sample, Second
from muxflow_run.summary import number

TITLES: Final = (
    "Online p99 latency",
    "Online p50 latency",
    "Online p99 latency, the GPU's part",
    "Online requests lost",
    "Offline share of idle time",
    "Normalized throughput",
    "Offline jobs done",
    "Freezes and evictions",
    "Host CPU",
    "Placements",
    "Predictions against measurements",
)
"""Of the plots that every report has; those of single GPUs and services come on top."""
NAMES: Final = {
    "alone": "alone",
    "unprotected": "unprotected",
    "protected": "protected",
    "alone_again": "alone again",
}
_SIZES: Final = {"small": "one", "medium": "two", "large": "three"}
_COMPARED: Final = ("alone", "unprotected", "protected")


_PERCENTILES: Final[tuple[tuple[str, Callable[[Second], float | None]], ...]] = (
    ("p99", lambda second: second.p99_ms),
    ("p50", lambda second: second.p50_ms),
)
_READINGS: Final[tuple[tuple[str, Callable[[Sample], float | None]], ...]] = (
    ("GPU utilization", lambda sample: sample.utilization_pct),
    ("SM activity", lambda sample: sample.sm_activity_pct),
    ("memory in use", lambda sample: sample.memory_used_pct),
)


def overview(report: Report) -> list[Element]:
    phases = report.phases
    return [
        bars(TITLES[0], "times alone", _by_service(report, "p99_ratio"), bound=1.1),
        bars(TITLES[1], "times alone", _by_service(report, "p50_ratio"), bound=1.1),
        bars(TITLES[2], "ms", _on_device(phases)),
        _per_phase(TITLES[3], "requests", phases, lambda each: each.online_requests_lost),
        bars(TITLES[4], "share", _by_gpu(phases, lambda gpu: gpu.offline_share), bound=0.6),
        bars(TITLES[5], "1 = undisturbed", _by_gpu(phases, lambda gpu: gpu.normalized_throughput)),
        _jobs_done(phases["protected"]),
        bars(
            TITLES[7],
            "count",
            [
                (what, [Bar(NAMES[name], name, float(getattr(phases[name], what))) for name in _COMPARED])
                for what in ("freezes", "evictions")
            ],
        ),
        _per_phase(TITLES[8], "%", phases, lambda each: each.host.cpu_pct),
    ]


def _by_service(report: Report, what: str) -> list[tuple[str, list[Bar]]]:
    first = report.phases["alone"].services
    found = []
    for place, service in enumerate(first):
        group = []
        for name in ("unprotected", "protected", "alone_again"):
            ratio = getattr(report.phases[name].services[place], what)
            ends = (ratio.ratio, ratio.low, ratio.high) if ratio else (None, None, None)
            group.append(Bar(NAMES[name], name, *ends))
        found.append((service.service, group))
    return found


def _on_device(phases: dict[str, PhaseFigures]) -> list[tuple[str, list[Bar]]]:
    return [
        (
            service.service,
            [Bar(NAMES[name], name, phase.services[place].device_p99_ms) for name, phase in phases.items()],
        )
        for place, service in enumerate(phases["alone"].services)
    ]


def _by_gpu(phases: dict[str, PhaseFigures], read: Callable[[GpuFigures], float | None]) -> list[tuple[str, list[Bar]]]:
    return [
        (gpu.gpu, [Bar(NAMES[name], name, read(phases[name].gpus[place])) for name in ("unprotected", "protected")])
        for place, gpu in enumerate(phases["protected"].gpus)
    ]


def _per_phase(
    title: str, unit: str, phases: dict[str, PhaseFigures], read: Callable[[PhaseFigures], float]
) -> Element:
    return bars(
        title, unit, [(NAMES[name], [Bar(NAMES[name], name, float(read(each)))]) for name, each in phases.items()]
    )


def _jobs_done(phase: PhaseFigures) -> Element:
    """Steps: how many jobs have ended by when."""
    ends = sorted(job.ended_s for job in phase.jobs if job.ended_s is not None and job.state == "finished")
    steps: list[tuple[float, float | None]] = [(0.0, float(sum(end < 0 for end in ends)))]
    for end in ends:
        if 0 <= end <= phase.seconds:
            steps += [(end, steps[-1][1]), (end, (steps[-1][1] or 0.0) + 1)]
    steps.append((phase.seconds, steps[-1][1]))
    return lines(
        f"{TITLES[6]} (since submission)", "jobs", [Line("protected", "protected", tuple(steps))], seconds=phase.seconds
    )


# --- over time ---


def latencies(report: Report) -> list[Element]:
    found = []
    for place, service in enumerate(report.phases["alone"].services):
        for per_cent, read in _PERCENTILES:
            drawn = [
                Line(
                    NAMES[name],
                    name,
                    tuple(
                        (at + 0.5, read(second))
                        for at, second in enumerate(report.phases[name].services[place].seconds)
                    ),
                )
                for name in _COMPARED
            ]
            title = f"{service.service} on {service.gpu}: {per_cent} of each second"
            found.append(lines(title, "ms", drawn, seconds=report.settings.window_s))
    return found


def gpus(report: Report) -> list[Element]:
    found = []
    for place, gpu in enumerate(report.phases["alone"].gpus):
        for what, read in _READINGS:
            drawn = [_readings(report, name, place, read) for name in _COMPARED]
            if any(value is not None for line in drawn for _, value in line.points):
                found.append(lines(f"{gpu.gpu}: {what}", "%", drawn, seconds=report.settings.window_s, top=100))
        found.append(_control(report.phases["protected"], place))
    return found


def _readings(report: Report, name: str, place: int, read: Callable[[Sample], float | None]) -> Line:
    samples = report.phases[name].gpus[place].samples
    return Line(NAMES[name], name, tuple((sample.at_s, read(sample)) for sample in samples))


def _control(phase: PhaseFigures, place: int) -> Element:
    """What protection did on one GPU: what the online side used, what offline work was allowed, and what it took."""
    gpu = phase.gpus[place]
    drawn = [
        Line("online activity", "one", tuple((sample.at_s, sample.online_activity_pct) for sample in gpu.samples)),
        Line("budget", "two", tuple((sample.at_s, sample.budget_pct) for sample in gpu.samples)),
        Line("offline busy", "four", tuple((sample.at_s, sample.offline_busy_pct) for sample in gpu.samples)),
    ]
    return lines(f"{gpu.gpu}: protection at work", "%", drawn, seconds=phase.seconds, top=100)


# --- jobs ---


def jobs(report: Report) -> list[Element]:
    phase = report.phases["protected"]
    return [_placements(phase), _predictions(phase.placements)]


def _placements(phase: PhaseFigures) -> Element:
    start = min([0.0, *(each.from_s for each in phase.placements)])
    drawn = []
    for gpu in phase.gpus:
        spans = tuple(
            Span(
                each.from_s,
                phase.seconds if each.to_s is None else each.to_s,
                "four" if each.purpose == "profile" else _SIZES.get(each.size, "one"),
                f"{each.job}#{each.attempt}, {each.purpose}, SM share {number(each.sm_share_pct)} %",
            )
            for each in phase.placements
            if each.gpu == gpu.gpu
        )
        marks = tuple(
            Mark(each.at_s, "bad", each.words)
            for each in phase.happenings
            if each.gpu == gpu.gpu and (each.kind == "alert" or each.words.startswith("overlimit"))
        )
        drawn.append(Lane(gpu.gpu, spans, marks))
    names = [*_SIZES.items(), ("measured alone", "four"), ("freeze, eviction", "bad")]
    return lanes(
        f"{TITLES[9]}: which job was where (dashed: begin of the window)",
        drawn,
        start=start,
        end=phase.seconds,
        names=names,
    )


def _predictions(placements: Sequence[PlacementFigures]) -> Element:
    dots = [
        Dot(
            _SIZES.get(each.size, "one"),
            each.predicted,
            measured,
            f"{each.job} on {each.gpu}: predicted {each.predicted} ({each.basis}), measured {measured}",
            each.predicted_low,
            each.predicted_high,
        )
        for each in placements
        if each.predicted is not None and (measured := each.measured) is not None
    ]
    return points(TITLES[10], "measured (upwards) over predicted, 1 = alone", dots, names=list(_SIZES.items()))
