"""Which job was where, what was predicted for it there, and what it then got. Pure functions."""

from __future__ import annotations

from typing import Final

from muxflow_run.observation import Observation, Stay
from muxflow_run.queue import TENANT
from muxflow_run.report import PlacementFigures

SETTLE_NS: Final = 1_000_000_000
"""What an attempt does in its first second, it does to begin."""
SHORTEST_NS: Final = 3_000_000_000
"""A shorter time says nothing of how fast an attempt is."""
FEWEST: Final = 3
"""Nor do fewer readings."""


def figures(seen: Observation) -> tuple[PlacementFigures, ...]:
    """Tell of every attempt."""
    return tuple(_placement(seen, stay) for stay in seen.stays())


def _placement(seen: Observation, stay: Stay) -> PlacementFigures:
    gpu = seen.gpus[stay.gpu]
    predicted = seen.predictions.get(stay.key)
    measured, measured_by = _measured(seen, stay)
    return PlacementFigures(
        job=stay.job,
        size=_size(seen, stay),
        attempt=stay.attempt,
        gpu=gpu.name,
        service=gpu.service.name if gpu.service else None,
        purpose=stay.purpose,
        from_s=seen.at_s(stay.from_ns),
        to_s=None if stay.to_ns is None else seen.at_s(stay.to_ns),
        sm_share_pct=_sm_share(seen, stay),
        predicted=None if predicted is None else round(predicted.normalized_throughput, 3),
        predicted_low=None if predicted is None else round(predicted.low, 3),
        predicted_high=None if predicted is None else round(predicted.high, 3),
        basis=None if predicted is None else predicted.basis,
        measured=measured,
        measured_by=measured_by,
        corun=_corun(seen, stay),
        work_per_s=_work_per_s(seen, stay),
    )


def _size(seen: Observation, stay: Stay) -> str:
    return next((job.size.name for job in seen.plan.jobs if job.name == stay.job), "")


def _sm_share(seen: Observation, stay: Stay) -> int | None:
    """The share that the attempt was given: decisions name it for every slot."""
    for _, decision in seen.events("decisions"):
        for slot in decision.slots:
            if (slot.job, slot.attempt) == stay.key:
                share: int | None = slot.sm_share_pct
                return share
    return None


def _span(seen: Observation, stay: Stay) -> tuple[int, int] | None:
    """When it ran inside of the window, its begin left out; None if that is too short to say anything."""
    start_ns = max(stay.from_ns + SETTLE_NS, seen.window.begin_ns)
    end_ns = min(stay.to_ns or seen.window.end_ns, seen.window.end_ns)
    return (start_ns, end_ns) if end_ns - start_ns >= SHORTEST_NS else None


def _measured(seen: Observation, stay: Stay) -> tuple[float | None, str | None]:
    """What it got relative to running alone, and by what that was measured."""
    key, kind = f"{TENANT}/{_size(seen, stay)}", seen.gpus[stay.gpu].kind
    profiles = {each.gpu_kind: each for (of, _), each in seen.profiles().items() if of == key}
    if (alone := profiles.get(kind)) is not None and alone.launches_per_s:
        launches_per_s = _launches_per_s(seen, stay)
        if launches_per_s is not None:
            return round(launches_per_s / alone.launches_per_s, 3), "launches"
    work_per_s = _work_per_s(seen, stay)
    busy = [each.busy_permille for each in profiles.values() if each.busy_permille]
    if work_per_s is None or not busy:
        return None, None
    return round(work_per_s / (busy[0] / 1000), 3), "device log"


def _launches_per_s(seen: Observation, stay: Stay) -> float | None:
    span = _span(seen, stay)
    if span is None:
        return None
    counted = [
        (at_ns, usage.launches)
        for at_ns, sample in seen.samples(stay.gpu)
        for usage in sample.offline
        if (usage.job, usage.attempt) == stay.key and span[0] <= at_ns < span[1]
    ]
    if len(counted) < FEWEST:
        return None
    (first_ns, first), (last_ns, last) = counted[0], counted[-1]
    return (last - first) / ((last_ns - first_ns) / 1e9)


def _corun(seen: Observation, stay: Stay) -> float | None:
    gpu = seen.gpus[stay.gpu]
    pair = (f"{TENANT}/{_size(seen, stay)}", gpu.service.name if gpu.service else None, gpu.kind)
    found = [
        event.normalized_throughput
        for _, event in seen.events("profiles.corun")
        if (event.offline_key, event.workload, event.gpu_kind) == pair and event.normalized_throughput is not None
    ]
    return round(found[-1], 3) if found else None


def _work_per_s(seen: Observation, stay: Stay) -> float | None:
    span = _span(seen, stay)
    tally = seen.tallies.get(seen.gpus[stay.gpu].index)
    if span is None or tally is None:
        return None
    return round(tally.work_ns({stay.pid}, *span) / (span[1] - span[0]), 3)
