"""The matching itself: a min-cost flow from classes of jobs to classes of GPUs, exact, with a proof each time.

    source ──1 arc per job──▶ job class ──fits──▶ GPU class ──▶ sink
       └──────────────────── unplaced ─────────────────────────▶

*Jobs first.* A job's arc costs its place in the queue. Sets of jobs that can be placed together form a matroid, so the
cheapest such set is also the first in queue order: no job waits for the sake of any number of jobs behind it.
*Pairs second.* The costs of all pairs (`model.cost`) add up to less than one place in the queue.
*Pruning.* Of a class of jobs at most as many can be placed as GPUs fit it: those behind them are left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import msgspec
from ortools.graph.python import min_cost_flow

from muxflow_decisions.lifecycle.retry import holds_back
from muxflow_decisions.matching.certificate import Certificate, CertificateError, Network, certify
from muxflow_decisions.matching.model import COST_STEPS, FreeGpu, JobKey, Need, Offer, WaitingJob, cost, fits

_SOURCE, _SINK, _FIRST_CLASS = 0, 1, 2

Choices = tuple[tuple[int, int], ...]
"""For one need: the numbers of the GPU classes that fit it, each with the cost of the pair."""


class Matching(msgspec.Struct, frozen=True):
    """Result of one solve."""

    assignments: tuple[tuple[JobKey, FreeGpu], ...] = ()
    """In queue order. Every job and every GPU at most once."""
    certificate: Certificate | None = None
    """None when no job fits any GPU, so that there was nothing to solve."""


class _JobClass(msgspec.Struct, frozen=True):
    choices: Choices
    capacity: int
    """GPUs that fit."""
    members: list[tuple[int, WaitingJob]]
    """The first in the queue, each with its place there; never more than `capacity`."""


class _GpuClass(msgspec.Struct, frozen=True):
    offer: Offer
    members: list[FreeGpu]


def match(waiting: Iterable[WaitingJob], gpus: Sequence[FreeGpu], *, now_ns: int) -> Matching:
    """Place waiting jobs on free GPUs, at most one job on each.

    Jobs in back-off at `now_ns` are left out. Raises `CertificateError` should the solver be wrong.
    """
    ready = (
        job for job in waiting if not holds_back(since_ns=job.held_since_ns, until_ns=job.not_before_ns, now_ns=now_ns)
    )
    gpu_classes = _classify_gpus(gpus)
    job_classes = _classify_jobs(sorted(ready, key=lambda job: job.order), gpu_classes)
    if not job_classes:
        return Matching()
    network, pairs = _network(job_classes, gpu_classes)
    flow = _solve(network)
    certificate = certify(network, flow)
    placed = [(job_class, gpu_class, flow[arc]) for job_class, gpu_class, arc in pairs if flow[arc]]
    return Matching(_spread(placed, job_classes, gpu_classes), certificate)


def _classify_gpus(gpus: Sequence[FreeGpu]) -> list[_GpuClass]:
    classes: dict[Offer, _GpuClass] = {}
    for gpu in sorted(gpus, key=lambda gpu: (gpu.node, gpu.uuid)):
        found = classes.get(gpu.offer)
        if found is None:
            found = classes[gpu.offer] = _GpuClass(gpu.offer, [])
        found.members.append(gpu)
    return sorted(classes.values(), key=lambda found: _rank(found.offer))


def _rank(offer: Offer) -> tuple[int, str, tuple[str, ...], int]:
    """Order of classes: the same GPUs give the same network, whatever order they were found in."""
    return (offer.memory_bytes, offer.kind, offer.runners, offer.load)


def _classify_jobs(queue: Sequence[WaitingJob], gpu_classes: Sequence[_GpuClass]) -> list[_JobClass]:
    """Group jobs that have the same choices, and prune; a memory between two sizes on offer is as good as the upper."""
    sizes = sorted({found.offer.memory_bytes for found in gpu_classes})
    of_need: dict[tuple[int, tuple[str, ...], str], _JobClass] = {}
    of_choices: dict[Choices, _JobClass] = {}
    for place, job in enumerate(queue):
        need = job.need
        size = bisect_left(sizes, need.memory_bytes)
        if size == len(sizes):
            continue
        key = (size, need.kinds, need.runner)
        found = of_need.get(key)
        if found is None:
            choices, capacity = _choices(Need(sizes[size], need.kinds, need.runner), gpu_classes)
            found = of_need[key] = of_choices.setdefault(choices, _JobClass(choices, capacity, []))
        if len(found.members) < found.capacity:
            found.members.append((place, job))
    return [found for found in of_choices.values() if found.members]


def _choices(need: Need, gpu_classes: Sequence[_GpuClass]) -> tuple[Choices, int]:
    largest_bytes = max(found.offer.memory_bytes for found in gpu_classes)
    fitting = [number for number, found in enumerate(gpu_classes) if fits(need, found.offer)]
    choices = tuple((number, cost(need, gpu_classes[number].offer, largest_bytes=largest_bytes)) for number in fitting)
    return choices, sum(len(gpu_classes[number].members) for number in fitting)


def _network(
    job_classes: Sequence[_JobClass], gpu_classes: Sequence[_GpuClass]
) -> tuple[Network, list[tuple[int, int, int]]]:
    """Build the network; also give job class, GPU class and number of each arc between classes."""
    places = sorted(place for found in job_classes for place, _ in found.members)
    rank = {place: number for number, place in enumerate(places)}
    jobs = len(places)
    gpus = sum(len(found.members) for found in gpu_classes)
    step = 1 + min(jobs, gpus) * COST_STEPS  # more than all pairs together
    first_gpu_class = _FIRST_CLASS + len(job_classes)

    network = Network([jobs, -jobs] + [0] * (len(job_classes) + len(gpu_classes)), [], [], [], [])
    network.add(_SOURCE, _SINK, jobs, (jobs + 1) * step)
    pairs: list[tuple[int, int, int]] = []
    for number, job_class in enumerate(job_classes):
        for place, _ in job_class.members:
            network.add(_SOURCE, _FIRST_CLASS + number, 1, rank[place] * step)
        for choice, pair_cost in job_class.choices:
            capacity = min(len(job_class.members), len(gpu_classes[choice].members))
            arc = network.add(_FIRST_CLASS + number, first_gpu_class + choice, capacity, pair_cost)
            pairs.append((number, choice, arc))
    for number, gpu_class in enumerate(gpu_classes):
        network.add(first_gpu_class + number, _SINK, len(gpu_class.members), 0)
    return network, pairs


def _solve(network: Network) -> list[int]:
    solver = min_cost_flow.SimpleMinCostFlow()
    for arc in zip(network.tails, network.heads, network.capacities, network.costs, strict=True):
        solver.add_arc_with_capacity_and_unit_cost(*arc)
    for node, supply in enumerate(network.supplies):
        solver.set_node_supply(node, supply)
    status = solver.solve()
    if status != solver.OPTIMAL:
        raise CertificateError(f"the solver found no flow: {status}")
    return [solver.flow(arc) for arc in range(len(network.tails))]


def _spread(
    placed: Sequence[tuple[int, int, int]], job_classes: Sequence[_JobClass], gpu_classes: Sequence[_GpuClass]
) -> tuple[tuple[JobKey, FreeGpu], ...]:
    """Give each class's GPUs to its first jobs in the queue, GPUs in the order of their names."""
    jobs = [iter(found.members) for found in job_classes]
    gpus = [iter(found.members) for found in gpu_classes]
    chosen: list[tuple[int, JobKey, FreeGpu]] = []
    for job_class, gpu_class, count in placed:
        for _ in range(count):
            place, job = next(jobs[job_class])
            chosen.append((place, job.key, next(gpus[gpu_class])))
    return tuple((key, gpu) for _, key, gpu in sorted(chosen, key=lambda pair: pair[0]))
