"""Why a job is where it is or waits, what it could get elsewhere, and what is known of it, for whoever asks."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Final

from msgspec.structs import replace

from muxflow.contracts import JobRecord, JobState, OfflineProfile, PlacementOption, Speed
from muxflow_decisions import speed
from muxflow_decisions.lifecycle import Turn, verdict
from muxflow_decisions.matching import (
    FleetView,
    Need,
    Offer,
    Option,
    Speeds,
    Spot,
    WaitingJob,
    fits,
    measured_of,
    options,
    spot_of,
    why_waiting,
)
from muxflow_decisions.matching.devices import LOADS
from muxflow_scheduler.desired import GpuKey
from muxflow_scheduler.ledger import JobKey, key_of
from muxflow_scheduler.offers import UNDISTURBED_PERMILLE, stepped
from muxflow_scheduler.term import Term

_MIB: Final = 2**20


class Explaining:
    """What is asked at one moment, in words and numbers; the fleet and the queue are looked at once."""

    def __init__(self, term: Term) -> None:
        self._term = term
        self._policy = term.settings.scheduler.matching

    @cached_property
    def view(self) -> FleetView:
        """Every GPU."""
        return self._term.offers.view()

    @cached_property
    def positions(self) -> dict[JobKey, int]:
        """How many waiting jobs go before each one, in queue order."""
        return {job.key: position for position, job in enumerate(self._term.queue.in_order())}

    def why_waiting(self, record: JobRecord) -> str:
        """Say why a pending job does not run."""
        how = self._term.placing.how_it_waits(record)
        if how is not None and how.turn is Turn.AFTER:
            return "another job of its profile key is measured first"
        job = self._seen(record)
        return why_waiting(
            job,
            self.view,
            position=self.positions.get(key_of(record), 0),
            now_ns=time.time_ns(),
            speeds=self._speeds(job.need),
            policy=self._policy,
        )

    def options(self, record: JobRecord) -> tuple[PlacementOption, ...]:
        """Every class of GPUs, and what the job would get there, the best first; none when it has ended."""
        if record.state.terminal:
            return ()
        need = self._term.queue.seen(record).need
        found = options(self._seen(record), self.view, self._speeds(need), self._policy)
        return tuple(self._option(need, each) for each in found)

    def _seen(self, record: JobRecord) -> WaitingJob:
        """What matching sees of a job: one that waits to be measured wants a GPU for that."""
        job = self._term.queue.seen(record)
        how = self._term.placing.how_it_waits(record) if record.state is JobState.PENDING else None
        alone = how is not None and how.turn is not Turn.ANYWHERE
        return replace(job, need=replace(job.need, alone=True)) if alone else job

    def _option(self, need: Need, option: Option) -> PlacementOption:
        offer = option.offer
        fits_here = fits(need, offer)
        return PlacementOption(
            gpu_kind=offer.kind,
            gpu_memory_bytes=offer.memory_bytes,
            workload=offer.workload,
            load_pct=None if offer.workload is None else 100 * (offer.load + 1) / LOADS,
            gpus=option.gpus,
            free=option.free,
            sm_share_pct=offer.sm_share_pct,
            speed=self._speed(need, offer) if fits_here else None,
            note=option.note,
        )

    @cached_property
    def _spots(self) -> tuple[Spot, ...]:
        return tuple(dict.fromkeys(spot_of(gpu.offer) for gpu in self.view.gpus))

    def _speeds(self, need: Need) -> Speeds:
        return self._term.speeds.table((measured_of(need), spot) for spot in self._spots)

    def profile(self, record: JobRecord) -> str | None:
        """Say what is known of a job from measurements; None when it has ended."""
        if record.state.terminal:
            return None
        found = verdict(self._term.profiles.of(record.spec.measured_as), record.spec.gpu.kinds)
        if found is not None:
            return _told(found)
        if record.state is JobState.PROFILING:
            return "it is being measured now"
        return "it runs without one" if record.profiled else "it is to be measured first"

    def speed(self, record: JobRecord) -> Speed | None:
        """What is predicted for a job where it is; None while it is nowhere."""
        if record.placement is None:
            return None
        offer = self._term.offers.at(GpuKey(record.placement.node, record.placement.gpu))
        if offer is None:
            return None
        share = record.placement.sm_share_pct
        there = replace(offer, sm_share_pct=None if share is None else stepped(share))
        return self._speed(self._term.queue.seen(record).need, there)

    def _speed(self, need: Need, offer: Offer) -> Speed:
        if offer.assumed_permille == UNDISTURBED_PERMILLE:
            return speed.alone(measured=bool(need.key), fits_probability=1.0)
        found = self._term.speeds.get(measured_of(need), spot_of(offer))
        return found or self._term.offers.assumed(offer.workload, offer.kind, sm_share_pct=offer.sm_share_pct)


def _told(profile: OfflineProfile) -> str:
    if not profile.confident:
        return f"it could not be measured on {profile.gpu_kind}: {profile.failure}"
    figures = (
        f"{profile.launches_per_s:.0f} launches/s" if profile.launches_per_s is not None else None,
        f"busy {profile.busy_permille / 10:.0f}% of the time" if profile.busy_permille is not None else None,
        f"SM activity {profile.sm_activity_pct:.0f}%" if profile.sm_activity_pct is not None else None,
        f"{profile.memory_peak_bytes / _MIB:.0f} MiB at most" if profile.memory_peak_bytes is not None else None,
    )
    return f"measured alone on {profile.gpu_kind}: " + ", ".join(each for each in figures if each)
