"""Attempts on GPUs: measured while they are alone, and beside services."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from muxflow.contracts import (
    Attempt,
    CorunProfile,
    DeviceCondition,
    GpuSample,
    OfflineProfile,
    OfflineUsage,
    Purpose,
    Slot,
)
from muxflow_decisions.profiling import (
    Beside,
    CorunPolicy,
    Ended,
    Measuring,
    ProfilePolicy,
    Sample,
    Surroundings,
    Verdict,
    alone,
    corun,
    disturbance,
)
from muxflow_profiler.fleet import Fleet, GpuKey, Served

_SILENT_NS: Final = 10_000_000_000
"""An attempt that goes after so long without telemetry went with its node."""

OfflineKey = tuple[str, str]
"""Profile key, GPU kind."""
CorunKey = tuple[str, str, str]
"""Profile key, workload, GPU kind."""


class _Watched(msgspec.Struct, kw_only=True):
    """One attempt, as far as it is known."""

    measuring: Measuring
    beside: Beside = Beside()
    neighbour: tuple[str | None, int | None] = (None, None)
    """The service that `beside` is about, and the attempt's share of the SMs."""
    condition: DeviceCondition | None = None
    """Of its device, when it was seen last."""
    seen_ns: int = 0
    """When that was stored, by the server's clock."""


class _Sight(NamedTuple):
    """One message about one attempt."""

    slot: Slot
    kind: str
    served: Served
    sample: GpuSample
    usage: OfflineUsage
    time_ns: int


class OfflineSide:
    """Measures attempts. `tell_offline` and `tell_corun` get what is to be published."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        alone_policy: ProfilePolicy,
        corun_policy: CorunPolicy,
        tell_offline: Callable[[OfflineProfile], None],
        tell_corun: Callable[[CorunProfile], None],
        on_outcome: Callable[[str], None],
    ) -> None:
        """`on_outcome` gets a word for each measurement alone that is over: confident, failed, interrupted."""
        self._fleet = fleet
        self._alone_policy = alone_policy
        self._corun_policy = corun_policy
        self._tell_offline = tell_offline
        self._tell_corun = tell_corun
        self._on_outcome = on_outcome
        self._watched: dict[tuple[GpuKey, Attempt], _Watched] = {}
        self.profiles: dict[OfflineKey, OfflineProfile] = {}
        self.coruns: dict[CorunKey, CorunProfile] = {}
        self._told: dict[CorunKey, CorunProfile] = {}

    @property
    def measuring(self) -> int:
        """Attempts whose measurement alone is not over."""
        return sum(not each.measuring.over for each in self._watched.values())

    def remember(self, event: OfflineProfile | CorunProfile) -> None:
        """Take in what an earlier profiler told last."""
        if isinstance(event, OfflineProfile):
            self.profiles[event.key, event.gpu_kind] = event
        else:
            key = event.offline_key, event.workload, event.gpu_kind
            # Whoever goes on with it is another publication, with an identity of its own.
            self.coruns[key] = self._told[key] = replace(event, id="", source="", time_ns=0)

    def take(self, key: GpuKey, sample: GpuSample, *, time_ns: int, stored_ns: int) -> None:
        """Take in what a GPU's attempts have used. `time_ns` is when the readings were taken, by the node's clock;
        `stored_ns` when the server stored them.
        """
        kind = self._fleet.kind(key)
        if kind is None:
            return
        served = self._fleet.served(key, time_ns)
        for usage in sample.offline:
            attempt = Attempt(tenant=usage.tenant, job=usage.job, attempt=usage.attempt)
            slot = self._fleet.slot(key, attempt)
            if slot is None or not slot.profile_key:
                continue
            watched = self._watched.get((key, attempt))
            if watched is None:
                watched = self._watched[key, attempt] = _Watched(measuring=_begun(slot))
            watched.condition, watched.seen_ns = sample.state, stored_ns
            sight = _Sight(slot, kind, served, sample, usage, time_ns)
            if not watched.measuring.over:
                self._measure_alone(watched, sight)
            self._measure_beside(watched, sight)

    def gone(self, key: GpuKey, slot: Slot, *, withdrawn: bool, stored_ns: int) -> None:
        """Take in that an attempt is not wanted any more, or is over."""
        watched = self._watched.pop((key, slot.key), None)
        kind = self._fleet.kind(key)
        if kind is None or not slot.profile_key or (watched is None and slot.purpose is not Purpose.PROFILE):
            return
        watched = watched or _Watched(measuring=_begun(slot), condition=DeviceCondition.HEALTHY, seen_ns=stored_ns)
        lost = stored_ns - watched.seen_ns > _SILENT_NS
        interrupted = withdrawn or lost or watched.condition is not DeviceCondition.HEALTHY
        if not watched.measuring.over:
            if interrupted:
                self._on_outcome("interrupted")
            self._advance(watched, Ended(interrupted=interrupted), slot, kind)

    def _measure_alone(self, watched: _Watched, sight: _Sight) -> None:
        around = Surroundings(
            online_known=sight.served.known,
            workload=sight.served.workload,
            others=len(sight.sample.offline) - 1,
            sm_share_pct=sight.slot.sm_share_pct,
        )
        seen = Sample(
            time_ns=sight.time_ns,
            usage=sight.usage,
            gpu=replace(sight.sample, offline=()),
            disturbance=disturbance(sight.sample, around, self._alone_policy),
        )
        self._advance(watched, seen, sight.slot, sight.kind)

    def _advance(self, watched: _Watched, stimulus: Sample | Ended, slot: Slot, kind: str) -> None:
        outcome = alone.advance(watched.measuring, stimulus, policy=self._alone_policy)
        watched.measuring = outcome.memory
        if outcome.verdict is not None:
            self._conclude(outcome.verdict, slot, kind)

    def _conclude(self, verdict: Verdict, slot: Slot, kind: str) -> None:
        self._on_outcome("confident" if verdict.failure is None else "failed")
        new = alone.profile(verdict, key=slot.profile_key, gpu_kind=kind, sm_share_pct=slot.sm_share_pct)
        if alone.replaces(self.profiles.get((slot.profile_key, kind)), new, self._alone_policy):
            self.profiles[slot.profile_key, kind] = new
            self._tell_offline(new)

    def _measure_beside(self, watched: _Watched, sight: _Sight) -> None:
        slot, workload = sight.slot, sight.served.workload
        if (workload, slot.sm_share_pct) != watched.neighbour:
            watched.beside, watched.neighbour = Beside(), (workload, slot.sm_share_pct)
        if workload is None:
            return
        seen = corun.BesideSample(time_ns=sight.time_ns, usage=sight.usage, gpu=sight.sample)
        outcome = corun.advance(watched.beside, seen, policy=self._corun_policy)
        watched.beside = outcome.memory
        if outcome.window is None:
            return
        key = slot.profile_key, workload, sight.kind
        nothing = CorunProfile(offline_key=slot.profile_key, workload=workload, gpu_kind=sight.kind)
        new = self.coruns[key] = corun.merge(
            self.coruns.get(key, nothing),
            outcome.window,
            alone=self.profiles.get((slot.profile_key, sight.kind)),
            sm_share_pct=slot.sm_share_pct,
            policy=self._corun_policy,
        )
        if corun.is_news(self._told.get(key), new):
            self._told[key] = new
            self._tell_corun(new)


def _begun(slot: Slot) -> Measuring:
    return Measuring(bounded=slot.purpose is Purpose.PROFILE)
