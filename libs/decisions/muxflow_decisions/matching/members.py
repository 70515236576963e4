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
from muxflow_decisions.matching.model import JobKey, OpenGpu, PlacedJob, WaitingJob
from muxflow_decisions.matching.problem import MatchingPolicy, Move


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """Steps that only make sense together."""

    entering: tuple[int, WaitingJob, OpenGpu] | None = None
    """A waiting job with its place in the queue and its GPU: the first one of `moves` leaves that. None if a placed job
    begins the chain."""
    moves: tuple[Move, ...] = ()
    """In the order in which they can be made, circles apart."""
    gain_permille: int = 0
    """What the moves gain, what they cost deducted; without that of the entering job."""
    permille: int = 0
    """Normalized throughput of the entering job."""

    @property
    def gpus(self) -> Iterator[tuple[str, str]]:
        """Places of the GPUs that it gives to somebody."""
        if self.entering is not None:
            yield self.entering[2].place
        for move in self.moves:
            yield move.target.place


class _Entry(msgspec.Struct, frozen=True):
    """Somebody gets a GPU."""

    job_class: int
    gpu_class: int
    gpu: OpenGpu
    waiting: tuple[int, WaitingJob] | None
    placed: tuple[int, PlacedJob] | None
    """With the GPU class that it leaves."""


def chains(classes: Classes, counts: Integers, policy: MatchingPolicy) -> tuple[list[Chain], int]:
    """Choose members for a plan; also sum the normalized throughput of placed jobs as they are, in thousandths."""
    leaving = [_leaving(job_class, counts[number], policy) for number, job_class in enumerate(classes.jobs)]
    occupant = {job.gpu: job.key for jobs in leaving for _, job in jobs}
    kept = {
        job.gpu for job_class in classes.jobs for jobs in job_class.placed.values() for job in jobs
    } - occupant.keys()
    entries = _entries(classes, counts, leaving, kept, occupant)
    before = sum(
        len(jobs) * int(classes.permille[number, at])
        for number, job_class in enumerate(classes.jobs)
        for at, jobs in job_class.placed.items()
    )
    return list(_chains(entries, classes, policy)), before


def _leaving(job_class: JobClass, counts: Integers, policy: MatchingPolicy) -> list[tuple[int, PlacedJob]]:
    """Choose who moves, with the GPU class that each leaves."""
    return [
        (at, job)
        for at, jobs in sorted(job_class.placed.items())
        for job in sorted(jobs, key=lambda job: (-policy.move_permille(job), job.key))[int(counts[at]) :]
    ]


def _entries(
    classes: Classes,
    counts: Integers,
    leaving: Sequence[Sequence[tuple[int, PlacedJob]]],
    kept: set[tuple[str, str]],
    occupant: dict[tuple[str, str], JobKey],
) -> list[_Entry]:
    """Hand the GPUs of each class out to those who enter it."""
    left = [
        deque(sorted((gpu for gpu in found.members if gpu.place not in kept), key=lambda gpu: gpu.place in occupant))
        for found in classes.gpus
    ]
    entering: list[tuple[int, int, int]] = []
    for number, job_class in enumerate(classes.jobs):
        first = job_class.waiting[0][0] if job_class.waiting else sys.maxsize
        for at in counts[number].nonzero()[0].tolist():
            coming = int(counts[number, at]) - len(job_class.placed.get(at, ()))
            if coming > 0:
                entering.append((first, number, at))
    slots: list[list[tuple[int, OpenGpu]]] = [[] for _ in classes.jobs]
    for _, number, at in sorted(entering):
        coming = int(counts[number, at]) - len(classes.jobs[number].placed.get(at, ()))
        slots[number].extend((at, left[at].popleft()) for _ in range(coming))
    entries: list[_Entry] = []
    for number, found in enumerate(slots):
        movers = leaving[number]
        found.sort(key=lambda slot: slot[1].place in occupant)
        waiting = classes.jobs[number].waiting[: len(found) - len(movers)]
        for (at, gpu), job in zip(found, waiting, strict=False):
            entries.append(_Entry(number, at, gpu, job, None))
        for (at, gpu), mover in zip(found[len(waiting) :], movers, strict=True):
            entries.append(_Entry(number, at, gpu, None, mover))
    return entries


def _chains(entries: Sequence[_Entry], classes: Classes, policy: MatchingPolicy) -> Iterator[Chain]:
    mover_from = {entry.placed[1].gpu: entry for entry in entries if entry.placed is not None}
    entered = {entry.gpu.place for entry in entries}
    begun = [entry for entry in entries if entry.placed is None or entry.placed[1].gpu not in entered]
    done: set[tuple[str, str]] = set()
    for entry in [*begun, *mover_from.values()]:
        if entry.gpu.place in done:
            continue
        steps: list[_Entry] = []
        step: _Entry | None = entry
        while step is not None and step.gpu.place not in done:
            done.add(step.gpu.place)
            steps.append(step)
            step = mover_from.get(step.gpu.place)
        yield _chain(steps, mover_from, classes, policy)


def _chain(
    steps: Sequence[_Entry],
    mover_from: dict[tuple[str, str], _Entry],
    classes: Classes,
    policy: MatchingPolicy,
) -> Chain:
    moves: list[Move] = []
    gain_permille = 0
    for step in reversed(steps):
        if step.placed is None:
            continue
        at, job = step.placed
        in_the_way = mover_from.get(step.gpu.place)
        move = Move(
            key=job.key,
            source=job.gpu,
            target=step.gpu,
            source_permille=int(classes.permille[step.job_class, at]),
            target_permille=int(classes.permille[step.job_class, step.gpu_class]),
            after=in_the_way.placed[1].key if in_the_way is not None and in_the_way.placed is not None else None,
        )
        moves.append(move)
        gain_permille += move.target_permille - move.source_permille - policy.move_permille(job)
    first = steps[0]
    if first.waiting is None:
        return Chain(moves=tuple(moves), gain_permille=gain_permille)
    return Chain(
        entering=(*first.waiting, first.gpu),
        moves=tuple(moves),
        gain_permille=gain_permille,
        permille=int(classes.permille[first.job_class, first.gpu_class]),
    )
