"""Figures of one phase. Pure functions from what was seen to what is written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from muxflow.cli.alerts import in_words
from muxflow.contracts import DeviceCondition, GpuSample
from muxflow_run import placements
from muxflow_run.load import SECOND_NS, Request, Window
from muxflow_run.observation import Observation
from muxflow_run.plan import Gpu, Plan
from muxflow_run.report import (
    GpuFigures,
    Happening,
    Interval,
    JobFigures,
    ModelFigures,
    PhaseFigures,
    Sample,
    Second,
    ServiceFigures,
    SolveFigures,
)
from muxflow_simgpu.figures import Pair, percentile, ratio_interval

_REAL: Final = "no log of what ran when on a real GPU"
_NOT_COUNTED: Final = "these GPUs have no such counters: {gpus}"
_PERCENTILES: Final = (50.0, 99.0)


def figures(seen: Observation, alone: Observation | None) -> PhaseFigures:
    """Make the figures of a phase; ratios are to phase `alone`, None for itself."""
    services = tuple(_service(seen, alone, gpu, service.name) for gpu, service in seen.plan.served)
    gpus = tuple(_gpu(seen, uuid, gpu) for uuid, gpu in sorted(seen.gpus.items(), key=lambda each: each[1].index))
    ratio = _ratio(seen, alone, [service.name for _, service in seen.plan.served], 99.0)
    with_jobs = any(True for _ in seen.events("jobs.submit")) or bool(seen.jobs)
    return PhaseFigures(
        seconds=seen.window.seconds,
        warm_up_s=round(seen.warm_up_s, 1),
        note=seen.note,
        online_requests=sum(each.requests for each in services),
        online_requests_lost=sum(each.lost for each in services),
        online_p99_ratio=ratio.ratio if ratio else None,
        online_p99_ratio_low=ratio.low if ratio else None,
        online_p99_ratio_high=ratio.high if ratio else None,
        online_device_p99_ratio=_device_ratio(seen, alone),
        offline_share=_share(seen, [uuid for uuid, gpu in seen.gpus.items() if gpu.service is not None]),
        offline_share_all=_share(seen, list(seen.gpus)),
        normalized_throughput=_mean([each.normalized_throughput for each in gpus], 3),
        jobs_done=_jobs_done(seen) if with_jobs else None,
        freezes=sum(each.freezes for each in gpus),
        evictions=sum(each.evictions for each in gpus),
        host=seen.host,
        services=services,
        gpus=gpus,
        jobs=_jobs(seen),
        placements=placements.figures(seen),
        solves=_solves(seen),
        model=_model(seen),
        happenings=_happenings(seen),
        missing=_missing(seen, gpus),
    )


def _jobs_done(seen: Observation) -> int:
    return sum(each.time_ns < seen.window.end_ns for each, _ in seen.events("jobs.finished"))


# --- online services ---


def slices(requests: Sequence[Request], window: Window) -> tuple[tuple[float, ...], ...]:
    """Latencies (ms) of the requests that were answered, second by second of when they were due."""
    found: list[list[float]] = [[] for _ in range(max(1, round(window.seconds)))]
    for request in requests:
        if request.error is None:
            found[_second(request, window)].append(request.latency_ms)
    return tuple(map(tuple, found))


def _second(request: Request, window: Window) -> int:
    number = (request.due_ns - window.begin_ns) // SECOND_NS
    return min(max(0, number), max(1, round(window.seconds)) - 1)


def _service(seen: Observation, alone: Observation | None, gpu: Gpu, name: str) -> ServiceFigures:
    requests = seen.requests[name]
    answered = [request.latency_ms for request in requests if request.error is None]
    p50, p99 = (_percentile(answered, per_cent) for per_cent in _PERCENTILES)
    on_device = _on_device(seen, name)
    return ServiceFigures(
        service=name,
        gpu=gpu.name,
        requests=len(requests),
        lost=len(requests) - len(answered),
        p50_ms=p50,
        p99_ms=p99,
        device_p50_ms=_percentile(on_device, 50.0),
        device_p99_ms=_percentile(on_device, 99.0),
        p50_ratio=_ratio(seen, alone, [name], 50.0),
        p99_ratio=_ratio(seen, alone, [name], 99.0),
        seconds=_seconds(requests, seen.window),
    )


def _on_device(seen: Observation, name: str) -> list[float]:
    kernels = [each for pid in seen.online_pids.get(name, ()) for each in seen.online_kernels.get(pid, ())]
    return device_ms(seen.requests[name], kernels)


def _device_ratio(seen: Observation, alone: Observation | None) -> float | None:
    """p99 of the GPU's part of a request / alone: median over services."""
    if alone is None:
        return None
    ratios = [
        percentile(after, 99.0) / percentile(before, 99.0)
        for _, service in seen.plan.served
        if (after := _on_device(seen, service.name)) and (before := _on_device(alone, service.name))
    ]
    return round(statistics.median(ratios), 3) if ratios else None


def device_ms(requests: Sequence[Request], kernels: Iterable[tuple[int, int]]) -> list[float]:
    """Add up, for each request, the time of its kernels from when each could run to its end, in ms.

    A kernel can run when it has been launched and the one before it has ended. `kernels` are launch and end of the
    service's kernels, those of before the window too. Requests are served one after the other.
    """
    launched = sorted(kernels)
    found, place, served_ns = [], 0, 0
    for request in sorted(requests, key=lambda each: each.done_ns):
        begin_ns = max(served_ns, request.due_ns)
        while place < len(launched) and launched[place][0] < begin_ns:
            place += 1
        took_ns, free_ns = 0, 0
        while place < len(launched) and launched[place][0] <= request.done_ns:
            launch_ns, end_ns = launched[place]
            took_ns += max(0, end_ns - max(launch_ns, free_ns))
            free_ns = max(free_ns, end_ns)
            place += 1
        if took_ns and request.error is None:
            found.append(took_ns / 1e6)
        served_ns = request.done_ns
    return found


def _seconds(requests: Sequence[Request], window: Window) -> tuple[Second, ...]:
    lost = [0] * max(1, round(window.seconds))
    for request in requests:
        if request.error is not None:
            lost[_second(request, window)] += 1
    return tuple(
        Second(
            requests=len(answered) + gone,
            lost=gone,
            p50_ms=_percentile(answered, 50.0),
            p99_ms=_percentile(answered, 99.0),
        )
        for answered, gone in zip(slices(requests, window), lost, strict=True)
    )


def _ratio(seen: Observation, alone: Observation | None, names: Sequence[str], per_cent: float) -> Interval | None:
    if alone is None:
        return None
    pairs = [
        Pair(slices(alone.requests[name], alone.window), slices(seen.requests[name], seen.window)) for name in names
    ]
    found = ratio_interval(pairs, per_cent=per_cent)
    if found is None:
        return None
    return Interval(ratio=round(found.median, 3), low=round(found.low, 3), high=round(found.high, 3))


# --- GPUs ---


def _gpu(seen: Observation, uuid: str, gpu: Gpu) -> GpuFigures:
    inside = [
        (at_ns, sample) for at_ns, sample in seen.samples(uuid) if seen.window.begin_ns <= at_ns < seen.window.end_ns
    ]

    def mean(read: Callable[[GpuSample], float | None]) -> float | None:
        return _mean([read(sample) for _, sample in inside], 1)

    return GpuFigures(
        gpu=gpu.name,
        kind=gpu.kind,
        service=gpu.service.name if gpu.service else None,
        utilization_pct=mean(lambda sample: sample.utilization_pct),
        sm_activity_pct=mean(lambda sample: sample.sm_activity_pct),
        memory_used_pct=mean(_memory_pct),
        online_activity_pct=mean(lambda sample: sample.online_activity_pct),
        offline_busy_pct=mean(lambda sample: _tenth(sample.offline_busy_permille)),
        budget_pct=mean(lambda sample: _tenth(sample.budget_permille)),
        offline_share=_share(seen, [uuid]),
        normalized_throughput=_throughput(seen, uuid),
        freezes=_freezes(seen, uuid),
        evictions=_evictions(seen, uuid),
        samples=tuple(_sample(seen, at_ns, sample) for at_ns, sample in inside),
    )


def _sample(seen: Observation, at_ns: int, sample: GpuSample) -> Sample:
    return Sample(
        at_s=seen.at_s(at_ns),
        state=sample.state.value if sample.state else None,
        utilization_pct=_round(sample.utilization_pct),
        sm_activity_pct=_round(sample.sm_activity_pct),
        memory_used_pct=_round(_memory_pct(sample)),
        online_activity_pct=_round(sample.online_activity_pct),
        offline_busy_pct=_tenth(sample.offline_busy_permille),
        budget_pct=_tenth(sample.budget_permille),
    )


def _memory_pct(sample: GpuSample) -> float | None:
    if sample.memory_used_bytes is None or not sample.memory_total_bytes:
        return None
    return 100 * sample.memory_used_bytes / sample.memory_total_bytes


def _share(seen: Observation, uuids: Sequence[str]) -> float | None:
    """Offline work relative to what fits into exactly the online side's idle time, over several GPUs."""
    work_ns = idle_ns = 0.0
    for uuid in uuids:
        gpu = seen.gpus[uuid]
        if (tally := seen.tallies.get(gpu.index)) is None:
            return None
        online = seen.online_pids.get(gpu.service.name, frozenset()) if gpu.service else frozenset()
        begin_ns, end_ns = seen.window.begin_ns, seen.window.end_ns
        busy_ns = sum(until - start for start, until in tally.busy(online, begin_ns, end_ns))
        idle_ns += end_ns - begin_ns - busy_ns
        work_ns += tally.work_ns(seen.offline_pids(uuid), begin_ns, end_ns)
    return round(work_ns / idle_ns, 3) if idle_ns else None


def _throughput(seen: Observation, uuid: str) -> float | None:
    tally = seen.tallies.get(seen.gpus[uuid].index)
    if tally is None:
        return None
    work_ns = tally.work_ns(seen.offline_pids(uuid), seen.window.begin_ns, seen.window.end_ns)
    return round(work_ns / (seen.window.end_ns - seen.window.begin_ns), 3)


def _freezes(seen: Observation, uuid: str) -> int:
    """How often the device came into Overlimit: offline work is frozen at once then."""
    return sum(
        seen.within(each)
        and event.gpu == uuid
        and event.state is DeviceCondition.OVERLIMIT
        and event.previous is not DeviceCondition.OVERLIMIT
        for each, event in seen.events("devices.state")
    )


def _evictions(seen: Observation, uuid: str) -> int:
    """How many attempts were put off the device; each is told when it is decided, and when it is over."""
    found = {
        (event.tenant, event.job, event.attempt)
        for each, event in seen.events("alerts.eviction")
        if seen.within(each) and event.gpu == uuid and event.total_ms is None
    }
    return len(found)


# --- jobs, solves, what was told ---


def _jobs(seen: Observation) -> tuple[JobFigures, ...]:
    submitted = {each.received.names["job"]: each.time_ns for each, _ in seen.events("jobs.submit")}
    ended = {
        event.job: each.time_ns
        for kind in ("jobs.finished", "jobs.failed", "jobs.cancelled")
        for each, event in seen.events(kind)
    }
    sizes = {job.name: job.size.name for job in seen.plan.jobs}
    evicted = [event.job for _, event in seen.events("alerts.eviction") if event.total_ms is None]
    order = {job.name: number for number, job in enumerate(seen.plan.jobs)}
    return tuple(
        JobFigures(
            job=job.job,
            size=sizes.get(job.job, ""),
            priority=job.priority,
            state=job.state.value,
            attempts=job.attempt,
            evictions=evicted.count(job.job),
            submitted_s=_at(seen, submitted.get(job.job)),
            ended_s=_at(seen, ended.get(job.job)),
        )
        for job in sorted(seen.jobs, key=lambda job: order.get(job.job, len(order)))
    )


def _at(seen: Observation, monotonic_ns: int | None) -> float | None:
    return None if monotonic_ns is None else seen.at_s(monotonic_ns)


def _solves(seen: Observation) -> tuple[SolveFigures, ...]:
    return tuple(
        SolveFigures(
            at_s=seen.at_s(solve.time_ns + seen.monotonic_of_utc_ns),
            trigger=solve.trigger,
            jobs=solve.jobs,
            gpus=solve.gpus,
            placed=solve.placed,
            moved=solve.moved,
            throughput=solve.throughput,
            cost=solve.cost,
            bound=solve.bound,
            solve_ms=solve.solve_ms,
        )
        for solve in seen.solves
    )


def _model(seen: Observation) -> ModelFigures | None:
    if seen.model is None:
        return None
    return ModelFigures(
        version=seen.model.version,
        trained_rows=seen.model.trained_rows,
        held_out_rows=seen.model.held_out_rows,
        evaluation=seen.model.evaluation,
        measured_on=seen.model.measured_on,
    )


def _happenings(seen: Observation) -> tuple[Happening, ...]:
    """What people would be told, warm-up included."""
    known = {uuid: gpu.name for uuid, gpu in seen.gpus.items()}
    found = []
    for each in seen.seen:
        event, kind = each.received.event, each.received.kind
        at_s = seen.at_s(each.time_ns)
        if kind == "devices.state" and event.state is not event.previous:
            words = f"{event.state.value}{': ' if event.cause else ''}{event.cause}"
            found.append(Happening(at_s=at_s, gpu=known.get(event.gpu), kind="state", words=words))
        elif kind.startswith("alerts."):
            told = in_words(event, known)
            found.append(Happening(at_s=at_s, gpu=known.get(event.gpu or ""), kind="alert", words=" ".join(told[:2])))
        elif kind in ("jobs.finished", "jobs.failed"):
            where = known.get(getattr(event, "gpu", ""))
            found.append(Happening(at_s=at_s, gpu=where, kind="job", words=f"{event.job} {kind.partition('.')[2]}"))
    return tuple(found)


def _missing(seen: Observation, gpus: Iterable[GpuFigures]) -> dict[str, str]:
    """Say of each kind of figure that is null why it is."""
    found = {}
    if not seen.tallies:
        found["offline_share, normalized_throughput, work_per_s"] = _REAL
    without = [each.gpu for each in gpus if each.sm_activity_pct is None]
    if without:
        found["sm_activity_pct"] = _NOT_COUNTED.format(gpus=", ".join(without))
    if seen.jobs and not seen.solves:
        found["solves"] = "the scheduler tells of none"
    if seen.jobs and not seen.predictions:
        found["predicted"] = "nobody predicts"
    if seen.jobs and seen.model is None:
        found["model"] = "no model of speeds serves: what was not measured is assumed, on the low side"
    return found


# --- numbers ---


def _percentile(values: Sequence[float], per_cent: float) -> float | None:
    return round(percentile(values, per_cent), 3) if values else None


def _mean(values: Sequence[float | None], digits: int) -> float | None:
    present = [value for value in values if value is not None]
    return round(statistics.fmean(present), digits) if present else None


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _tenth(permille: int | None) -> float | None:
    return None if permille is None else permille / 10


def fleet_of(plan: Plan) -> tuple[str, ...]:
    """Kinds of the plan's GPUs."""
    return tuple(gpu.kind for gpu in plan.gpus)
