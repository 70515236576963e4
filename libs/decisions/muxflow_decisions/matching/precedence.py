"""Which jobs get a GPU, before it is asked which one: no job waits for the sake of those behind it in the queue.

Sets of jobs that can be placed together form a matroid: taking each job in queue order, placed ones first, whenever it
can be placed beside all those taken before is best for everybody, in that order. Whether it can is a flow:

* A block of the queue is placed at once. One that does not fit as a whole is halved, down to the one job that cannot be
  placed even if others are moved aside.
* Then a set of job classes is *closed*: every GPU that any of them may be given is full with jobs of the set. None of
  them will ever be placed again, whatever comes behind, and the set with its GPUs is the proof (`check`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec
import numpy as np

from muxflow_decisions.matching.certificate import Integers
from muxflow_decisions.matching.classes import Classes
from muxflow_decisions.matching.problem import CertificateError
from muxflow_decisions.matching.room import Room


class Closure(msgspec.Struct, frozen=True, kw_only=True):
    """Why no more jobs of some classes are taken from one place in the queue on."""

    place: int
    job_classes: Integers
    """Numbers of the classes."""
    gpu_classes: Integers
    """Numbers of all the GPU classes that jobs of these may be given. Jobs ahead of the place fill them."""


class Precedence(msgspec.Struct, frozen=True, kw_only=True):
    """Who gets a GPU."""

    counts: Integers
    """For each job class, how many: its placed jobs, then the first of those that wait."""
    closures: tuple[Closure, ...] = ()


def decide(classes: Classes) -> Precedence:
    """Choose the jobs. CertificateError if the choice cannot be proved."""
    counts = np.array([found.placed_count for found in classes.jobs], dtype=np.int64)
    room = Room(classes)
    closures: list[Closure] = []
    blocks = [_queue(classes)]
    while blocks:
        block = blocks.pop()
        free = int(room.free.sum())
        if len(block) > max(free, 1):  # it cannot fit as a whole
            blocks += [block[max(free, 1) :], block[: max(free, 1)]]
            continue
        demand = np.bincount(block[:, 0], minlength=len(counts))
        attempt = room.copy()
        shut = attempt.take(demand)
        if shut is None:
            room = attempt
            counts += demand
        elif len(block) > 1:
            half = len(block) // 2
            blocks += [block[half:], block[:half]]
        else:
            closures.append(Closure(place=int(block[0, 1]), job_classes=shut.job_classes, gpu_classes=shut.gpu_classes))
            closed = np.isin(np.arange(len(counts)), shut.job_classes)
            blocks = [left for each in blocks if len(left := each[~closed[each[:, 0]]])]
    found = Precedence(counts=counts, closures=tuple(closures))
    check(classes, found)
    return found


def _queue(classes: Classes) -> Integers:
    """List the job class and the place of each waiting job, in queue order."""
    places = _places(classes)
    numbers = np.repeat(np.arange(len(places)), [len(found) for found in places])
    queue = np.stack([numbers, np.concatenate([np.zeros(0, dtype=np.int64), *places])], axis=1)
    return queue[np.argsort(queue[:, 1])]


def _places(classes: Classes) -> list[Integers]:
    """List the places in the queue that each job class has."""
    return [np.array([place for place, _ in found.waiting], dtype=np.int64) for found in classes.jobs]


def check(classes: Classes, found: Precedence) -> None:
    """Check, from the data alone, that nobody else could be taken. CertificateError if that is not shown.

    That all who are taken do have places is shown by the plan that gives them some.
    """
    taken = [
        places[: count - job_class.placed_count]
        for places, job_class, count in zip(_places(classes), classes.jobs, found.counts.tolist(), strict=True)
    ]
    shut_from: dict[int, int] = {}
    for closure in found.closures:
        _check_closure(classes, closure, taken)
        for number in closure.job_classes.tolist():
            shut_from[number] = min(closure.place, shut_from.get(number, closure.place))
    for number, job_class in enumerate(classes.jobs):
        left_out = job_class.waiting[len(taken[number]) :]
        if left_out and left_out[0][0] < shut_from.get(number, sys.maxsize):
            raise CertificateError(f"it is not shown why {left_out[0][1].key} waits")


def _check_closure(classes: Classes, closure: Closure, taken: Sequence[Integers]) -> None:
    """Check that jobs ahead of the place, of these classes, fill all that such jobs may be given."""
    inside = np.zeros(len(classes.gpus), dtype=np.bool_)
    inside[closure.gpu_classes] = True
    if classes.feasible[np.ix_(closure.job_classes, np.flatnonzero(~inside))].any():
        raise CertificateError("a job that was left out could be given a GPU that was not looked at")
    most = int(classes.sizes[closure.gpu_classes].sum())
    ahead = 0
    for number in closure.job_classes.tolist():
        ahead += classes.jobs[number].placed_count + int(np.searchsorted(taken[number], closure.place))
        most += sum(len(jobs) for at, jobs in classes.jobs[number].placed.items() if not inside[at])
    if ahead != most:
        raise CertificateError(f"{ahead} jobs are ahead of one that was left out, and there is room for {most}")
