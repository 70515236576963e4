"""Who is measured alone before it runs, who waits for that, and what new profiles mean for jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from muxflow.contracts import JobRecord, JobSpec, JobState
from muxflow_decisions.lifecycle import Plan, ProfileDone, ProfileGivenUp, Spots, holds_back, plan, verdict
from muxflow_decisions.matching import Need, WaitingJob
from muxflow_scheduler.ledger import JobKey, key_of
from muxflow_scheduler.offers import Offers
from muxflow_scheduler.profiles import Profiles


class Measuring:
    """An index over records, kept up by `update`, and what follows from it."""

    def __init__(self, profiles: Profiles, offers: Offers, *, wanted: bool, patience_s: float) -> None:
        self._profiles = profiles
        self._offers = offers
        self._wanted = wanted
        self._patience_ns = int(patience_s * 1e9)
        self._unmeasured: dict[str, set[JobKey]] = defaultdict(set)
        """By profile key."""
        self._measured_now: dict[str, set[JobKey]] = defaultdict(set)
        self._waiting: dict[str, set[JobKey]] = defaultdict(set)

    def update(self, record: JobRecord) -> None:
        """Take in the newest record of a job."""
        key, profile_key = key_of(record), record.spec.measured_as
        _keep(self._unmeasured, profile_key, key, there=not record.profiled and not record.state.terminal)
        _keep(self._measured_now, profile_key, key, there=record.state is JobState.PROFILING)
        _keep(self._waiting, profile_key, key, there=record.state is JobState.PENDING)

    def needless(self, spec: JobSpec) -> bool:
        """Whether a job that is submitted now need not be measured, or cannot be."""
        return self.known(spec) is not None or self._impossible(self._offers.spots(Need.of(spec)))

    def known(self, spec: JobSpec) -> ProfileDone | ProfileGivenUp | None:
        """What jobs of this kind are told; None while they are to be measured."""
        if not self._wanted:
            return ProfileGivenUp(reason="measuring is switched off")
        found = verdict(self._profiles.of(spec.measured_as), spec.gpu.kinds)
        if found is None:
            return None
        return ProfileDone() if found.confident else ProfileGivenUp(reason=found.failure or "it could not be measured")

    def predicted_as(self, record: JobRecord) -> str:
        """Key by which a job's speed is predicted; empty where only its memory is known."""
        found = verdict(self._profiles.of(record.spec.measured_as), record.spec.gpu.kinds)
        return record.spec.measured_as if found is not None and found.confident else ""

    def unmeasured_keys(self) -> tuple[str, ...]:
        """Profile keys of which jobs are unmeasured."""
        return tuple(self._unmeasured)

    def jobs_of(self, key: str) -> frozenset[JobKey]:
        """Unmeasured jobs of a profile key."""
        return frozenset(self._unmeasured.get(key, ()))

    def waiting(self, key: str) -> frozenset[JobKey]:
        """Pending jobs of a profile key, measured or not."""
        return frozenset(self._waiting.get(key, ()))

    def under_way(self, spec: JobSpec) -> bool:
        """Whether a job of this profile key is being measured."""
        return bool(self._measured_now.get(spec.measured_as))

    def plans(self, queue: Sequence[tuple[WaitingJob, JobSpec]], *, now_ns: int) -> Iterator[Plan | None]:
        """Tell for waiting jobs, in queue order, how each waits; None for those that need not be measured."""
        first: set[str] = set()
        for job, spec in queue:
            if job.profiled:
                yield None
                continue
            behind = spec.measured_as in first or self.under_way(spec)
            how = plan(
                self._offers.spots(Need.of(spec)),
                behind=behind,
                since_ns=max(job.held_since_ns, job.not_before_ns),
                now_ns=now_ns,
                patience_ns=self._patience_ns,
            )
            if not holds_back(since_ns=job.held_since_ns, until_ns=job.not_before_ns, now_ns=now_ns):
                first.add(spec.measured_as)
            yield how

    @staticmethod
    def _impossible(spots: Spots) -> bool:
        return bool(spots.fitting) and not spots.watched


def _keep(index: dict[str, set[JobKey]], profile_key: str, job: JobKey, *, there: bool) -> None:
    if there:
        index[profile_key].add(job)
    elif profile_key in index:
        index[profile_key].discard(job)
        if not index[profile_key]:
            del index[profile_key]
