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


def figures(seen: Observation) -> tuple[PlacementFigures, ...]:
    """Tell of every attempt."""
    return tuple(_placement(seen, stay) for stay in seen.stays())


def _placement(seen: Observation, stay: Stay) -> PlacementFigures:
    gpu = seen.gpus[stay.gpu]
    predicted = seen.predictions.get(stay.key)
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
        measured=_measured(seen, stay),
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


def _measured(seen: Observation, stay: Stay) -> float | None:
    """Launches per second in the window, relative to when jobs of its key were measured alone on that kind."""
    span = _span(seen, stay)
    profile = seen.profiles().get((f"{TENANT}/{_size(seen, stay)}", seen.gpus[stay.gpu].kind))
    if span is None or profile is None or not profile.launches_per_s:
        return None
    counted = [
        (at_ns, usage.launches)
        for at_ns, sample in seen.samples(stay.gpu)
        for usage in sample.offline
        if (usage.job, usage.attempt) == stay.key and span[0] <= at_ns < span[1]
    ]
    if len(counted) < 3:
        return None
    (first_ns, first), (last_ns, last) = counted[0], counted[-1]
    return round((last - first) / ((last_ns - first_ns) / 1e9) / profile.launches_per_s, 3)


def _work_per_s(seen: Observation, stay: Stay) -> float | None:
    span = _span(seen, stay)
    tally = seen.tallies.get(seen.gpus[stay.gpu].index)
    if span is None or tally is None:
        return None
    return round(tally.work_ns({stay.pid}, *span) / (span[1] - span[0]), 3)
