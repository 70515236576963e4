"""Classes of jobs and of GPUs: whoever cannot be told apart by any pair is one row, or one column.

Members of a class are interchangeable, so that a matching of thousands of members is a flow between hundreds of
classes, and exact.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from muxflow_decisions.matching import devices
from muxflow_decisions.matching.model import Need, Offer, OpenGpu, PlacedJob, WaitingJob
from muxflow_decisions.matching.participants import Participants
from muxflow_decisions.matching.problem import Problem, Weights
from muxflow_decisions.matching.speeds import UNKNOWN, Measured, Speeds, measured_of, spot_of

TIE_STEPS: Final = 1000
"""What decides between pairs of one speed is a whole number from 0 to this."""

_LOAD_STEPS: Final = 100
"""A tenth of it tells calm from busy: of GPUs that suit a job alike, it gets the calmest."""


class GpuClass(msgspec.Struct, frozen=True):
    """GPUs with one offer."""

    offer: Offer
    members: list[OpenGpu]
    """In the order of their places."""


class JobClass(msgspec.Struct, frozen=True):
    """Jobs to which every GPU class is worth the same."""

    placed: dict[int, list[PlacedJob]]
    """By the GPU class that they are on now."""
    waiting: list[tuple[int, WaitingJob]]
    """In queue order, each with its place there; never more than there are GPUs that fit."""

    @property
    def placed_count(self) -> int:
        """Jobs of it that have a GPU."""
        return sum(map(len, self.placed.values()))


class Classes(msgspec.Struct, frozen=True, kw_only=True):
    """Both kinds of classes, and what their pairs are worth. Matrices have a row for each job class."""

    jobs: list[JobClass]
    gpus: list[GpuClass]
    sizes: NDArray[np.int64]
    """Members of each GPU class."""
    feasible: NDArray[np.bool_]
    """Whether such a job may be given such a GPU. One that is there already may stay, whatever this says."""
    permille: NDArray[np.int64]
    """Normalized throughput, predicted or assumed."""
    ties: NDArray[np.int64]
    """What decides between pairs of one speed, 0 (best) to `TIE_STEPS`."""


class _Shape(msgspec.Struct, frozen=True):
    """All that pairs depend on at the job's side."""

    memory_bytes: int
    """The smallest memory on offer that is enough; the job's own where none is."""
    kinds: tuple[str, ...]
    runner: str
    alone: bool
    measured: Measured | None
    """Row of its predictions; None if there are none."""


class _Members(msgspec.Struct):
    placed: list[PlacedJob] = []
    waiting: list[tuple[int, WaitingJob]] = []


def classify(problem: Problem, found: Participants) -> Classes:
    """Group jobs and GPUs; waiting jobs that fit no GPU are left out."""
    gpus = _gpu_classes(found.gpus)
    class_of = {members.offer: number for number, members in enumerate(gpus)}
    class_at = {gpu.place: class_of[gpu.offer] for gpu in (found.gpus if found.placed else ())}
    sizes = np.array([len(members.members) for members in gpus], dtype=np.int64)
    shapes = _shapes(found, gpus, problem.speeds)
    rows = _rows(list(shapes), gpus, problem)

    joined: dict[bytes, int] = {}
    jobs: list[JobClass] = []
    kept: list[int] = []
    for number, members in enumerate(shapes.values()):
        if not members.placed and not rows.feasible[number].any():
            continue
        alike = joined.setdefault(rows.identity(number), len(jobs))
        if alike == len(jobs):
            jobs.append(JobClass({}, []))
            kept.append(number)
        for job in members.placed:
            jobs[alike].placed.setdefault(class_at[job.gpu], []).append(job)
        jobs[alike].waiting.extend(members.waiting)
    feasible = rows.feasible[kept]
    for job_class, capacity in zip(jobs, (feasible @ sizes).tolist(), strict=True):
        job_class.waiting.sort(key=_first)
        del job_class.waiting[capacity:]
    return Classes(
        jobs=jobs, gpus=gpus, sizes=sizes, feasible=feasible, permille=rows.permille[kept], ties=rows.ties[kept]
    )


def _first(pair: tuple[int, WaitingJob]) -> int:
    return pair[0]


def _gpu_classes(gpus: Sequence[OpenGpu]) -> list[GpuClass]:
    classes: dict[Offer, GpuClass] = {}
    for gpu in gpus:
        found = classes.get(gpu.offer)
        if found is None:
            found = classes[gpu.offer] = GpuClass(gpu.offer, [])
        found.members.append(gpu)
    return sorted(classes.values(), key=lambda found: _rank(found.offer))


def _rank(offer: Offer) -> tuple[Any, ...]:
    """Order of classes: the same GPUs give the same network, whatever order they were found in."""
    return (
        offer.memory_bytes,
        offer.kind,
        offer.runners,
        offer.load,
        offer.workload or "",
        offer.workload is None,
        offer.sm_share_pct or 0,
        offer.assumed_permille,
        offer.quiet,
    )


def _shapes(found: Participants, gpus: Sequence[GpuClass], speeds: Speeds) -> dict[_Shape, _Members]:
    """Group jobs by shape. A memory between two sizes on offer is as good as the upper."""
    sizes = sorted({members.offer.memory_bytes for members in gpus})
    shapes: dict[_Shape, _Members] = {}
    of_need: dict[Need, _Members] = {}

    def members_of(need: Need) -> _Members:
        known = of_need.get(need)
        if known is None:
            size = bisect_left(sizes, need.memory_bytes)
            memory_bytes = sizes[size] if size < len(sizes) else need.memory_bytes
            measured = measured_of(need) if measured_of(need) in speeds.permille else None
            known = shapes.setdefault(_Shape(memory_bytes, need.kinds, need.runner, need.alone, measured), _Members())
            of_need[need] = known
        return known

    for job in found.placed.values():
        members_of(job.need).placed.append(job)
    for place, waiting in enumerate(found.waiting):
        members_of(waiting.need).waiting.append((place, waiting))
    return shapes


class _Rows(msgspec.Struct, frozen=True):
    feasible: NDArray[np.bool_]
    permille: NDArray[np.int64]
    ties: NDArray[np.int64]

    def identity(self, number: int) -> bytes:
        """Equal for rows that are equal."""
        return b"".join(part[number].tobytes() for part in (self.feasible, self.permille, self.ties))


def _rows(shapes: Sequence[_Shape], gpus: Sequence[GpuClass], problem: Problem) -> _Rows:
    """Say for each shape and GPU class whether they may go together, how fast that is, and what breaks ties."""
    policy, speeds = problem.policy, problem.speeds
    offers = [members.offer for members in gpus]
    memory = np.array([offer.memory_bytes for offer in offers], dtype=np.int64)
    loads = np.array([offer.load for offer in offers], dtype=np.int64)
    assumed = np.array([offer.assumed_permille for offer in offers], dtype=np.int64)
    columns = {spot: number for number, spot in enumerate(speeds.spots)}
    column = np.array([columns.get(spot_of(offer), len(columns)) for offer in offers], dtype=np.int64)
    can = _demands(shapes, offers)
    largest_bytes = int(memory.max(initial=1))

    feasible = np.empty((len(shapes), len(gpus)), dtype=np.bool_)
    permille = np.empty((len(shapes), len(gpus)), dtype=np.int64)
    ties = np.empty((len(shapes), len(gpus)), dtype=np.int64)
    for number, shape in enumerate(shapes):
        feasible[number] = can[shape.kinds, shape.runner, shape.alone] & (shape.memory_bytes <= memory)
        permille[number] = assumed
        if shape.measured is not None:
            predicted = _read(speeds.permille[shape.measured])[column]
            known = predicted != UNKNOWN
            permille[number, known] = predicted[known]
            if policy.weights is not Weights.MEMORY:
                unsafe = _read(speeds.fits_permille[shape.measured])[column] < policy.fits_threshold_permille
                feasible[number] &= ~(known & unsafe)
        unused = (TIE_STEPS - _LOAD_STEPS) * np.maximum(memory - shape.memory_bytes, 0) // largest_bytes
        ties[number] = unused + _LOAD_STEPS * loads // (devices.LOADS - 1)
    if policy.weights is Weights.RANDOM:
        drawn = np.random.default_rng([policy.seed & _WORD, problem.now_ns & _WORD])
        ties = drawn.integers(0, TIE_STEPS, ties.shape, dtype=np.int64)
    return _Rows(feasible, permille, ties)


_WORD: Final = 2**64 - 1


_Demand = tuple[tuple[str, ...], str, bool]
"""Kinds, runner, and whether it must be alone."""


def _demands(shapes: Sequence[_Shape], offers: Sequence[Offer]) -> dict[_Demand, NDArray[np.bool_]]:
    """Say for each kind of demand which offers meet it, memory apart."""
    return {
        (kinds, runner, alone): np.array(
            [
                (not kinds or offer.kind in kinds) and runner in offer.runners and (offer.quiet or not alone)
                for offer in offers
            ],
            dtype=np.bool_,
        )
        for kinds, runner, alone in {(shape.kinds, shape.runner, shape.alone) for shape in shapes}
    }


def _read(row: bytes) -> NDArray[np.int64]:
    """Read a row of the table of speeds; its last number stands for spots that the table lacks."""
    return np.append(np.frombuffer(row, dtype="<u2"), np.uint16(UNKNOWN)).astype(np.int64)
