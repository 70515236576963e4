"""From classes back to their members: who stays, who moves where, and which waiting job gets which GPU.

For the plan any members of a class will do. As many as can keep their GPUs; of the others those that cost least go.
Free GPUs are for waiting jobs first: they can begin at once.

A job that enters a GPU may have to wait for the one on it, which moves itself, and so on: a *chain*, which ends at a
free GPU or comes back to its beginning. Chains touch neither jobs nor GPUs of each other, so any of them can be left
out: that is how moves are bounded.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from muxflow_decisions.matching.certificate import Integers
from muxflow_decisions.matching.classes import Classes, JobClass
from muxflow_decisions.matching.model import OpenGpu, PlacedJob, WaitingJob
from muxflow_decisions.matching.problem import MatchingPolicy, Move

Place = tuple[str, str]
"""Node and UUID of a GPU."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A waiting job gets a GPU."""

    place: int
    """The job's place in the queue."""
    job: WaitingJob
    gpu: OpenGpu
    permille: int
    """Normalized throughput, predicted or assumed."""


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """Moves that only make sense together."""

    moves: tuple[Move, ...]
    """In the order in which they can be made, circles apart."""
    gain_permille: int
    """What they gain together, what they cost deducted."""
    entry: Entry | None = None
    """A waiting job that gets the GPU which the last of the moves leaves; None if a placed job began the chain."""


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """How the members come to what the plan says."""

    entries: list[Entry]
    """Waiting jobs that get a free GPU, in queue order."""
    chains: list[Chain]
    placed_permille: int
    """Normalized throughput of all placed jobs as they are now, summed."""


class _Mover(msgspec.Struct, frozen=True):
    """A placed job changes its GPU."""

    job: PlacedJob
    target: OpenGpu
    source_permille: int
    target_permille: int


def steps(classes: Classes, counts: Integers, policy: MatchingPolicy) -> Steps:
    """Choose members for a plan: how many jobs of each class get GPUs of each class."""
    leaving = [_leaving(job_class, counts[number], policy) for number, job_class in enumerate(classes.jobs)]
    vacated = {job.gpu for jobs in leaving for _, job in jobs}
    slots = _slots(classes, counts, vacated)
    entries: list[Entry] = []
    movers: dict[Place, _Mover] = {}
    for number, job_class in enumerate(classes.jobs):
        permille: list[int] = classes.permille[number].tolist()
        gpus = iter(slots[number])
        for place, job in job_class.waiting[: len(slots[number]) - len(leaving[number])]:
            at, gpu = next(gpus)
            entries.append(Entry(place, job, gpu, permille[at]))
        for (source, placed), (at, gpu) in zip(leaving[number], gpus, strict=True):
            movers[placed.gpu] = _Mover(placed, gpu, permille[source], permille[at])
    entries.sort(key=lambda entry: entry.place)
    behind = [entry for entry in entries if entry.gpu.place in vacated] if vacated else []
    return Steps(
        entries=[entry for entry in entries if entry.gpu.place not in vacated] if vacated else entries,
        chains=list(_chains(behind, movers, policy)),
        placed_permille=sum(
            len(placed) * int(classes.permille[number, at])
            for number, job_class in enumerate(classes.jobs)
            for at, placed in job_class.placed.items()
        ),
    )


def _leaving(job_class: JobClass, counts: Integers, policy: MatchingPolicy) -> list[tuple[int, PlacedJob]]:
    """Choose who moves, with the GPU class that each leaves."""
    return [
        (at, job)
        for at, jobs in sorted(job_class.placed.items())
        for job in sorted(jobs, key=lambda job: (-policy.move_permille(job), job.key))[int(counts[at]) :]
    ]


def _slots(classes: Classes, counts: Integers, vacated: set[Place]) -> list[list[tuple[int, OpenGpu]]]:
    """Hand out to each job class the GPUs that its members enter, each with its class: free ones come first."""
    occupied = {job.gpu for job_class in classes.jobs for jobs in job_class.placed.values() for job in jobs}
    left = [deque(_enterable(members.members, occupied, vacated)) for members in classes.gpus]
    coming: list[tuple[int, int, int, int]] = []
    for number, job_class in enumerate(classes.jobs):
        first = job_class.waiting[0][0] if job_class.waiting else sys.maxsize
        row: list[int] = counts[number].tolist()
        coming.extend(
            (first, number, at, count)
            for at in counts[number].nonzero()[0].tolist()
            if (count := row[at] - len(job_class.placed.get(at, ()))) > 0
        )
    slots: list[list[tuple[int, OpenGpu]]] = [[] for _ in classes.jobs]
    for _, number, at, count in sorted(coming):
        slots[number].extend((at, left[at].popleft()) for _ in range(count))
    if vacated:
        for found in slots:
            found.sort(key=lambda slot: slot[1].place in vacated)
    return slots


def _enterable(members: Sequence[OpenGpu], occupied: set[Place], vacated: set[Place]) -> Sequence[OpenGpu]:
    if not occupied:
        return members
    free = [gpu for gpu in members if gpu.place not in occupied]
    return [*free, *(gpu for gpu in members if gpu.place in vacated)]


def _chains(entries: Sequence[Entry], movers: dict[Place, _Mover], policy: MatchingPolicy) -> Iterator[Chain]:
    """Follow each mover to the one whose GPU it gets."""
    left = dict(movers)
    for entry in entries:
        yield _chain(_follow(entry.gpu.place, left), policy, entry)
    entered = {mover.target.place for mover in left.values()}
    for source in [*(source for source in left if source not in entered), *left]:
        if source in left:
            yield _chain(_follow(source, left), policy)


def _follow(source: Place, left: dict[Place, _Mover]) -> list[_Mover]:
    """Take out the mover that leaves this GPU, the one that makes way for it, and so on."""
    found: list[_Mover] = []
    while (mover := left.pop(source, None)) is not None:
        found.append(mover)
        source = mover.target.place
    return found


def _chain(movers: Sequence[_Mover], policy: MatchingPolicy, entry: Entry | None = None) -> Chain:
    in_the_way = {mover.job.gpu: mover.job.key for mover in movers}
    return Chain(
        moves=tuple(
            Move(
                key=mover.job.key,
                source=mover.job.gpu,
                target=mover.target,
                source_permille=mover.source_permille,
                target_permille=mover.target_permille,
                after=in_the_way.get(mover.target.place),
            )
            for mover in reversed(movers)
        ),
        gain_permille=sum(
            mover.target_permille - mover.source_permille - policy.move_permille(mover.job) for mover in movers
        ),
        entry=entry,
    )
