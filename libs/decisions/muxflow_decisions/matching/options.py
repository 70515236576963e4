"""Where a job could be, for whoever asks about it: one line for all GPUs that are alike."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from muxflow_decisions.matching.model import Need, Offer, WaitingJob, fits
from muxflow_decisions.matching.problem import MatchingPolicy
from muxflow_decisions.matching.speeds import Speeds
from muxflow_decisions.matching.waiting import FleetGpu, FleetView
from muxflow_decisions.matching.words import is_, size


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs that are alike for a job, and what it would get there."""

    offer: Offer
    gpus: int
    """How many there are, of living nodes."""
    free: int
    """How many of them take it now."""
    permille: int
    """Normalized throughput in thousandths, predicted or assumed."""
    fits_permille: int | None
    """Probability, in thousandths, that it fits into the memory that is left; None: nothing is predicted."""
    note: str
    """Why it cannot be placed on any of them now; empty if it can."""


def options(job: WaitingJob, fleet: FleetView, speeds: Speeds, policy: MatchingPolicy) -> tuple[Option, ...]:
    """List where a job could be, on GPUs of living nodes: the best that is free first, what does not fit last."""
    alike: dict[Offer, list[FleetGpu]] = {}
    for gpu in fleet.gpus:
        if gpu.alive:
            alike.setdefault(gpu.offer, []).append(gpu)
    found = [_option(job, offer, gpus, speeds, policy) for offer, gpus in alike.items()]
    return tuple(sorted(found, key=lambda option: _rank(option, job.need)))


def _option(job: WaitingJob, offer: Offer, gpus: Sequence[FleetGpu], speeds: Speeds, policy: MatchingPolicy) -> Option:
    speed = speeds.find(job.need, offer)
    free = sum(gpu.takes_work and gpu.reserved_for in (None, job.key) for gpu in gpus)
    if not fits(job.need, offer):
        note = _missing(job.need, offer)
    elif speed is not None and not policy.safe(speed):
        least = policy.fits_threshold_permille / 10
        note = f"predicted not to fit: {speed.fits_permille / 10:.0f}%, and {least:.0f}% is asked for"
    else:
        note = "" if free else _taken(gpus)
    return Option(
        offer=offer,
        gpus=len(gpus),
        free=free,
        permille=offer.assumed_permille if speed is None else speed.permille,
        fits_permille=None if speed is None else speed.fits_permille,
        note=note,
    )


def _missing(need: Need, offer: Offer) -> str:
    if need.runner not in offer.runners:
        return f"no {need.runner} runner there"
    if need.kinds and offer.kind not in need.kinds:
        return f"it asks for {' or '.join(need.kinds)}"
    if need.memory_bytes > offer.memory_bytes:
        return f"needs {size(need.memory_bytes)}"
    return "it is to be measured alone first"


def _taken(gpus: Sequence[FleetGpu]) -> str:
    busy = sum(gpu.busy for gpu in gpus)
    reserved = sum(gpu.takes_work for gpu in gpus)
    draining = sum(gpu.draining and not gpu.busy for gpu in gpus)
    closed = [gpu.closed for gpu in gpus if not gpu.busy and not gpu.draining and gpu.closed is not None]
    told = [(busy, "busy"), (reserved, "reserved"), (draining, "on draining nodes")]
    told += [(len([each for each in closed if each.how == how]), how) for how in dict.fromkeys(c.how for c in closed)]
    return ", ".join(f"{number} {is_(number)} {how}" for number, how in told if number)


def _rank(option: Option, need: Need) -> tuple[bool, bool, int, str, int, str]:
    offer = option.offer
    return (
        not fits(need, offer),
        bool(option.note),
        -option.permille,
        offer.kind,
        offer.memory_bytes,
        offer.workload or "",
    )
