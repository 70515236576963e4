"""A made-up fleet of any size whose speeds have structure, and plainer ways to match it.

Uniform random weights would be misleadingly easy: here some jobs suffer from company more than others, strong GPUs and
calm services are better for everybody, and the rest is noise. So every job wants the same GPUs.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray
from ortools.graph.python import linear_sum_assignment

from muxflow_decisions.matching import (
    JobKey,
    Matching,
    Need,
    Offer,
    OpenGpu,
    PlacedJob,
    Problem,
    Speeds,
    WaitingJob,
    fits,
    measured_of,
    spot_of,
)

GIB = 2**30
KINDS = (("T4", 16, 0.5), ("A10", 24, 0.65), ("A100", 40, 0.85), ("H100", 80, 1.0), ("H200", 141, 1.1))
"""Kind, memory in GiB, strength."""
LOADS = 5
SHIFTED = 0.05
"""Share of GPU classes whose speeds change much in a minute, by up to `SHIFT_PERMILLE`; all change a little."""
SHIFT_PERMILLE = 60
NOISE_PERMILLE = 5
REPLACED = 0.02
"""Share of jobs and GPUs that are of another class a minute later."""


_NOT_PLACED = 10**7
"""Cost of a job that has no GPU: more than all speeds together."""


class Fleet(msgspec.Struct, frozen=True):
    """Classes, and how many members each of the kinds has."""

    offers: list[Offer]
    needs: list[Need]
    permille: NDArray[np.int64]
    """Job classes by GPU classes."""
    fits_permille: NDArray[np.int64]
    job_of: NDArray[np.int64]
    """Class of each job."""
    gpu_of: NDArray[np.int64]


def fleet(jobs: int, gpus: int, *, job_classes: int = 1000, gpu_classes: int = 500, seed: int = 0) -> Fleet:
    """Make one up."""
    rng = np.random.default_rng(seed)
    services = -(-gpu_classes // (len(KINDS) * LOADS))
    service_gib = rng.choice([1, 2, 4, 8], services)
    service_width = rng.uniform(0.6, 1.0, services)
    every = [(kind, service, load) for kind in KINDS for service in range(services) for load in range(LOADS)]
    chosen = every[:gpu_classes]
    offers = [
        Offer(kind, memory * GIB, ("process",), load, f"service-{service}", 90 - 15 * load, 300)
        for (kind, memory, _), service, load in chosen
    ]
    strength = np.array([kind[2] for kind, _, _ in chosen])
    load = np.array([service_width[service] * load / LOADS for _, service, load in chosen])
    room_gib = np.array([kind[1] - service_gib[service] for kind, service, _ in chosen])

    sensitivity = rng.beta(2, 2, job_classes)
    memory_gib = rng.choice([1, 4, 8, 16, 24, 40], job_classes, p=[0.2, 0.2, 0.25, 0.2, 0.1, 0.05])
    picky = rng.random(job_classes) < 0.15
    needs = [
        Need(int(memory) * GIB, ("A100", "H100", "H200") if only else (), "process", f"tenant/job-{number}")
        for number, (memory, only) in enumerate(zip(memory_gib, picky, strict=True))
    ]
    suffers = sensitivity[:, None] * (0.1 + 0.8 * load[None, :]) * (1.6 - 0.9 * strength[None, :])
    speed = 1 - suffers + rng.normal(0, 0.03, (job_classes, gpu_classes))
    spare_gib = room_gib[None, :] - memory_gib[:, None] + rng.normal(0, 0.5, (job_classes, gpu_classes))
    return Fleet(
        offers,
        needs,
        np.clip(np.rint(1000 * speed), 0, 1000).astype(np.int64),
        np.rint(1000 / (1 + np.exp(-2 * spare_gib))).astype(np.int64),
        rng.choice(job_classes, jobs, p=_popularity(job_classes)),
        rng.choice(gpu_classes, gpus, p=rng.permutation(_popularity(gpu_classes))),
    )


def _popularity(classes: int) -> NDArray[np.float64]:
    """A few classes are common, and most are not."""
    share = 1 / np.sqrt(1 + np.arange(classes))
    return np.asarray(share / share.sum())


def a_minute_later(made: Fleet, seed: int = 1) -> Fleet:
    """Change some of it: all predictions a little, those of some GPU classes much, some jobs, some GPUs."""
    rng = np.random.default_rng(seed)
    shift = (rng.random(len(made.offers)) < SHIFTED) * _up_to(SHIFT_PERMILLE, len(made.offers), rng)
    noise = _up_to(NOISE_PERMILLE, made.permille.shape, rng)
    job_of, gpu_of = made.job_of.copy(), made.gpu_of.copy()
    for members in (job_of, gpu_of):
        changed = rng.random(len(members)) < REPLACED
        members[changed] = rng.permutation(members)[changed]
    return msgspec.structs.replace(
        made, permille=np.clip(made.permille + noise + shift[None, :], 0, 1000), job_of=job_of, gpu_of=gpu_of
    )


def _up_to(most: int, shape: int | tuple[int, ...], rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.integers(-most, most + 1, shape)


def problem(made: Fleet) -> Problem:
    """Take all jobs as waiting and all GPUs as free."""
    return Problem(
        waiting=tuple(
            WaitingJob(key=("tenant", f"{number:06}"), need=made.needs[at], submitted_ns=number)
            for number, at in enumerate(made.job_of.tolist())
        ),
        gpus=tuple(
            OpenGpu(node=f"node-{number // 8:05}", uuid=f"GPU-{number:06}", offer=made.offers[at])
            for number, at in enumerate(made.gpu_of.tolist())
        ),
        speeds=Speeds(
            spots=tuple(map(spot_of, made.offers)),
            permille=_rows(made.needs, made.permille),
            fits_permille=_rows(made.needs, made.fits_permille),
        ),
    )


def _rows(needs: list[Need], values: NDArray[np.int64]) -> dict[tuple[str, int], bytes]:
    return {measured_of(need): row.astype("<u2").tobytes() for need, row in zip(needs, values, strict=True)}


def placed_as(waiting: Problem, matching: Matching) -> Problem:
    """Take the jobs of a problem as placed the way a matching of the same jobs and GPUs did."""
    places: dict[JobKey, tuple[str, str]] = {key: gpu.place for key, gpu in matching.assignments}
    return msgspec.structs.replace(
        waiting,
        waiting=tuple(job for job in waiting.waiting if job.key not in places),
        placed=tuple(
            PlacedJob(key=job.key, need=job.need, gpu=places[job.key]) for job in waiting.waiting if job.key in places
        ),
    )


def may(made: Fleet, threshold_permille: int) -> NDArray[np.bool_]:
    """Say which classes may go together."""
    can = np.array([[fits(need, offer) for offer in made.offers] for need in made.needs])
    return np.asarray(can & (made.fits_permille >= threshold_permille))


def greedy(made: Fleet, threshold_permille: int) -> tuple[int, int]:
    """Give each job in queue order the fastest GPU that is left.

    Gives the sum of normalized throughput, in thousandths, and how many jobs have a GPU.
    """
    worth = np.where(may(made, threshold_permille), made.permille, -1)
    left = np.bincount(made.gpu_of, minlength=len(made.offers))
    total = placed = 0
    for at in made.job_of.tolist():
        row = np.where(left > 0, worth[at], -1)
        best = int(row.argmax())
        if row[best] >= 0:
            left[best] -= 1
            total += int(row[best])
            placed += 1
    return total, placed


def dense(made: Fleet, threshold_permille: int) -> tuple[int, int]:
    """Match job by job and GPU by GPU in one dense matrix, as many as can be; gives the same as `greedy`."""
    size = max(len(made.job_of), len(made.gpu_of))
    costs = np.full((size, size), _NOT_PLACED, dtype=np.int64)
    worth = np.where(may(made, threshold_permille), made.permille, -_NOT_PLACED)
    costs[: len(made.job_of), : len(made.gpu_of)] = -worth[np.ix_(made.job_of, made.gpu_of)]
    solver = linear_sum_assignment.SimpleLinearSumAssignment()
    rows, columns = np.divmod(np.arange(size * size, dtype=np.int32), np.int32(size))
    solver.add_arcs_with_cost(rows, columns, costs.ravel())
    assert solver.solve() == solver.OPTIMAL
    chosen = np.array([solver.assignment_cost(row) for row in range(size)])
    return -int(chosen[chosen < _NOT_PLACED].sum()), int((chosen < _NOT_PLACED).sum())
