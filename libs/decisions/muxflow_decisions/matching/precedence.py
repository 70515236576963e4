"""Which waiting jobs get a GPU, before it is asked which one: no job waits for the sake of those behind it.

Sets of jobs that can be placed together form a matroid. The set that takes each job in queue order whenever it can be
placed beside all those taken before is therefore the base of least cost for any costs that grow along the queue, and
placed jobs, which cost nothing, are all in it.

*Who competes.* A largest flow, without costs, places as many jobs as can be. Job classes from which no job without a
GPU can be helped by moving others aside have all their jobs in every base, so only the others compete.
*Ranks.* Jobs of one class that follow each other in the queue of those who compete have one rank: they are
interchangeable, so that it does not matter which of them the costs prefer, only how many there are.

    source ──1 arc per rank──▶ job class ──can──▶ GPU class ──▶ sink
       └──────────────────── unplaced ─────────────────────────▶
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import msgspec
import numpy as np
from numpy.typing import NDArray

from muxflow_decisions.matching.certificate import Certificate, Integers, Network, certify
from muxflow_decisions.matching.classes import Classes
from muxflow_decisions.matching.optimizer import optimize

_SOURCE, _SINK, _FIRST_CLASS = 0, 1, 2


class Precedence(msgspec.Struct, frozen=True, kw_only=True):
    """Who gets a GPU."""

    counts: Integers
    """For each job class, how many: its placed jobs, then the first of those that wait."""
    certificate: Certificate | None
    """Proof for those who competed; None if every job has a place."""


class _Group(msgspec.Struct, frozen=True):
    """Job classes that may be given the same GPUs: there is no need here to tell them apart."""

    members: list[int]
    choices: list[tuple[int, int]]
    """GPU classes, each with the most jobs of the group that it can take."""
    placed: int
    waiting: list[int]
    """Places in the queue, ascending."""

    @property
    def ahead(self) -> list[int]:
        """Waiting jobs that are not behind more of the group than can ever be placed."""
        return self.waiting[: sum(capacity for _, capacity in self.choices)]

    @property
    def jobs(self) -> int:
        """Jobs that are to be placed."""
        return self.placed + len(self.ahead)


def decide(classes: Classes) -> Precedence:
    """Choose the jobs. CertificateError should the solver be wrong."""
    groups = _groups(classes)
    sizes: list[int] = classes.sizes.tolist()
    competing = _competing(groups, sizes)
    if not competing:
        return Precedence(counts=_counts(classes, groups, {}), certificate=None)
    taken, certificate = _first_in_queue([groups[number] for number in competing], sizes)
    return Precedence(
        counts=_counts(classes, groups, dict(zip(competing, taken, strict=True))), certificate=certificate
    )


def _groups(classes: Classes) -> list[_Group]:
    alike: dict[bytes, list[int]] = {}
    for number, job_class in enumerate(classes.jobs):
        alone = any(not classes.feasible[number, at] for at in job_class.placed)
        identity = np.packbits(classes.feasible[number]).tobytes() + (b"%d" % number if alone else b"")
        alike.setdefault(identity, []).append(number)
    return [_group(classes, members) for members in alike.values()]


def _group(classes: Classes, members: list[int]) -> _Group:
    jobs = [classes.jobs[number] for number in members]
    feasible = classes.feasible[members[0]]
    may = np.flatnonzero(feasible)
    stays = [(at, len(there)) for at, there in jobs[0].placed.items() if not feasible[at]]
    return _Group(
        members=members,
        choices=[*zip(may.tolist(), classes.sizes[may].tolist(), strict=True), *stays],
        placed=sum(job_class.placed_count for job_class in jobs),
        waiting=sorted(place for job_class in jobs for place, _ in job_class.waiting),
    )


def _competing(groups: Sequence[_Group], sizes: Sequence[int]) -> list[int]:
    """Find the groups that cannot all be placed, or that are in the way of such a group."""
    network, pairs = _network(groups, [[(0, group.jobs)] for group in groups], sizes)
    flow = optimize(network)
    unplaced = [group.jobs - int(flow[1 + number]) for number, group in enumerate(groups)]
    competing = {number for number, count in enumerate(unplaced) if count}
    if not competing:
        return []
    users: dict[int, set[int]] = {}
    room: dict[int, list[int]] = {number: [] for number in range(len(groups))}
    for (number, at, capacity), used in zip(pairs, flow[1 + len(groups) :].tolist(), strict=False):
        if used:
            users.setdefault(at, set()).add(number)
        if used < capacity:
            room[number].append(at)
    looked_at: set[int] = set()
    left = list(competing)
    while left:
        for at in room[left.pop()]:
            if at not in looked_at:
                looked_at.add(at)
                new = users.get(at, set()) - competing
                competing |= new
                left.extend(new)
    return sorted(competing)


def _first_in_queue(groups: Sequence[_Group], sizes: Sequence[int]) -> tuple[list[int], Certificate]:
    """Count for each of the competing groups the jobs that are taken, with the proof."""
    queue = sorted((place, number) for number, group in enumerate(groups) for place in group.ahead)
    ranks: list[list[tuple[int, int]]] = [[(0, group.placed)] for group in groups]
    for rank, (number, run) in enumerate(groupby(number for _, number in queue), 1):
        ranks[number].append((rank, len(list(run))))
    network, _ = _network(groups, ranks, sizes)
    flow = optimize(network)
    certificate = certify(network, flow)
    taken = []
    at = 1
    for arcs in ranks:
        taken.append(int(flow[at : at + len(arcs)].sum()))
        at += len(arcs)
    return taken, certificate


def _network(
    groups: Sequence[_Group], ranks: Sequence[Sequence[tuple[int, int]]], sizes: Sequence[int]
) -> tuple[Network, list[tuple[int, int, int]]]:
    """Build the network from each group's ranks (cost, number of jobs); also give group, GPU class and capacity of each
    arc between the two. Arcs: unplaced, ranks by group, pairs, GPU classes.
    """
    gpu_classes = sorted({at for group in groups for at, _ in group.choices})
    node_of = {at: _FIRST_CLASS + len(groups) + number for number, at in enumerate(gpu_classes)}
    jobs = sum(group.jobs for group in groups)
    dearest = max((cost for arcs in ranks for cost, _ in arcs), default=0) + 1
    entering = [(_FIRST_CLASS + number, count, cost) for number, arcs in enumerate(ranks) for cost, count in arcs]
    pairs = [
        (number, at, min(capacity, group.jobs)) for number, group in enumerate(groups) for at, capacity in group.choices
    ]
    enter = np.array(entering, dtype=np.int64).reshape(-1, 3).T
    pair = np.array([(number, node_of[at], capacity) for number, at, capacity in pairs], dtype=np.int64)
    number, head, capacity = pair.reshape(-1, 3).T
    leave = np.array([(node_of[at], sizes[at]) for at in gpu_classes], dtype=np.int64).reshape(-1, 2).T
    supplies = np.zeros(_FIRST_CLASS + len(groups) + len(gpu_classes), dtype=np.int64)
    supplies[_SOURCE], supplies[_SINK] = jobs, -jobs
    network = Network.of(
        supplies,
        (_SOURCE, _SINK, jobs, dearest),
        (_SOURCE, enter[0], enter[1], enter[2]),
        (_FIRST_CLASS + number, head, capacity, 0),
        (leave[0], _SINK, leave[1], 0),
    )
    return network, pairs


def _counts(classes: Classes, groups: Sequence[_Group], taken: dict[int, int]) -> NDArray[np.int64]:
    counts = np.zeros(len(classes.jobs), dtype=np.int64)
    for number, group in enumerate(groups):
        last = taken.get(number, group.jobs) - group.placed
        first_out = group.waiting[last] if last < len(group.waiting) else None
        for member in group.members:
            job_class = classes.jobs[member]
            waiting = sum(first_out is None or place < first_out for place, _ in job_class.waiting)
            counts[member] = job_class.placed_count + waiting
    return counts
