"""Who takes part in a solve, and what is settled before it."""

from __future__ import annotations

import msgspec

from muxflow_decisions.lifecycle.retry import holds_back
from muxflow_decisions.matching.model import OpenGpu, PlacedJob, WaitingJob, fits
from muxflow_decisions.matching.problem import Problem


class Participants(msgspec.Struct, frozen=True, kw_only=True):
    """A problem without what cannot change."""

    waiting: list[WaitingJob]
    """In queue order."""
    gpus: list[OpenGpu]
    """Those on offer, in the order of their places."""
    placed: dict[tuple[str, str], PlacedJob]
    """Jobs that may move, by the place of their GPU, which is on offer."""
    kept: list[tuple[PlacedJob, OpenGpu]]
    """Jobs that may not move, and their GPUs, which are not on offer."""
    settled: list[tuple[WaitingJob, OpenGpu]]
    """Waiting jobs and the GPUs that are reserved for them, which are not on offer."""


def participants(problem: Problem) -> Participants:
    """Sort a problem, and settle reservations. ValueError if two jobs are placed on one GPU, or one job twice."""
    occupied = {job.gpu: job for job in problem.placed}
    if len(occupied) != len(problem.placed) or len({job.key for job in problem.placed}) != len(problem.placed):
        raise ValueError("a job is placed twice, or two jobs are placed on one GPU")
    queue = {
        job.key: job
        for job in sorted(problem.waiting, key=_order)
        if not job.not_before_ns
        or not holds_back(since_ns=job.held_since_ns, until_ns=job.not_before_ns, now_ns=problem.now_ns)
    }
    found = Participants(waiting=[], gpus=[], placed={}, kept=[], settled=[])
    for gpu in sorted(problem.gpus, key=_place):
        job = occupied.get((gpu.node, gpu.uuid)) if occupied else None
        if job is not None and job.movable and gpu.reserved_for is None:
            found.placed[job.gpu] = job
            found.gpus.append(gpu)
        elif job is not None:
            found.kept.append((job, gpu))
        elif gpu.reserved_for is None:
            found.gpus.append(gpu)
        elif gpu.reserved_for in queue and fits(queue[gpu.reserved_for].need, gpu.offer):
            found.settled.append((queue.pop(gpu.reserved_for), gpu))
    found.waiting.extend(queue.values())
    return found


def _order(job: WaitingJob) -> tuple[int, int, tuple[str, str]]:
    return (-job.priority, job.submitted_ns, job.key)


def _place(gpu: OpenGpu) -> tuple[str, str]:
    return (gpu.node, gpu.uuid)
