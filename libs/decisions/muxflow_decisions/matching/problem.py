"""What is to be matched, by which policy, and what came of it: structs that cross the border of a process."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.contracts.event import Permille
from muxflow_decisions.matching.model import JobKey, OpenGpu, PlacedJob, WaitingJob
from muxflow_decisions.matching.speeds import Speed, Speeds


class CertificateError(ArithmeticError):
    """A matching is not feasible, or not proved to be the best."""


class Weights(enum.StrEnum):
    """By what pairs are chosen, once it is settled which jobs get a GPU."""

    PREDICTED = "predicted"
    """The largest sum of predicted normalized throughput."""
    MEMORY = "memory"
    """The best fit of memory, then calm; predictions are not used at all."""
    RANDOM = "random"
    """Any pairs that can run, drawn anew in each solve: what prediction is compared with."""


class MatchingPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the matching."""

    weights: Weights = Weights.PREDICTED
    seed: int = 0
    """Of `random`: the same problem and seed give the same matching."""
    fits_threshold_permille: Permille = 800
    """A job is not placed where it fits into the device's memory with a smaller probability."""
    migration_cost_permille: Permille = 20
    """A job moves only if the sum of normalized throughput grows by more: 20 for each move is two per cent. Measured
    speeds repeat to about that, and jobs shall not move back and forth for the noise of their measurements."""
    migration_cost_unsaved_permille: Permille = 100
    """The same for a job that declares no checkpoint, and begins anew when it moves."""
    moves_max: Annotated[int, Meta(ge=0)] = 10
    """Running jobs that one solve moves at most."""

    def safe(self, speed: Speed | None) -> bool:
        """Tell whether a job may be placed where this is predicted for it; None: nothing is."""
        return speed is None or self.weights is Weights.MEMORY or speed.fits_permille >= self.fits_threshold_permille

    def move_permille(self, job: PlacedJob) -> int:
        """Tell what moving a job costs, in thousandths of normalized throughput."""
        return self.migration_cost_permille if job.saves else self.migration_cost_unsaved_permille


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs and GPUs at one moment."""

    waiting: tuple[WaitingJob, ...] = ()
    """In any order. Those in back-off at `now_ns` are left out."""
    gpus: tuple[OpenGpu, ...] = ()
    """In any order, occupied ones included: a GPU is free if no placed job is on it."""
    placed: tuple[PlacedJob, ...] = ()
    """In any order. One whose GPU is not among `gpus` keeps it, and takes no part."""
    speeds: Speeds = Speeds()
    policy: MatchingPolicy = MatchingPolicy()
    now_ns: int = 0


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """A running job that is to have another GPU."""

    key: JobKey
    source: tuple[str, str]
    """Node and UUID of the GPU that it leaves."""
    target: OpenGpu
    source_permille: int
    """Predicted, or assumed, normalized throughput there."""
    target_permille: int
    after: JobKey | None = None
    """The job that has to leave the target first; None if the target is free. It moves in the same matching."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What one solve was about, and its proof."""

    jobs: int = 0
    """Jobs that took part, placed ones included."""
    gpus: int = 0
    job_classes: int = 0
    gpu_classes: int = 0
    throughput_permille: int = 0
    """Sum of the normalized throughput of all jobs that have a GPU once the matching is carried out, predicted or
    assumed, in thousandths."""
    planned_moves: int = 0
    """Moves of the best matching: more than are made if there are more than `moves_max`."""
    cost: int = 0
    """Cost of the flow, in the solver's units."""
    bound: int = 0
    """Least cost that any flow can have, by the certificate. Equal to `cost`."""
    solve_ms: float = 0.0
    """Time that the solve took; 0 until whoever has a clock fills it in."""


class Matching(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one solve. Every job and every GPU at most once, in all three together."""

    assignments: tuple[tuple[JobKey, OpenGpu], ...] = ()
    """Waiting jobs and the free GPUs that they get, in queue order."""
    moves: tuple[Move, ...] = ()
    """At most `moves_max`. Whoever is in another one's way comes before it, except in a circle."""
    promised: tuple[tuple[JobKey, OpenGpu], ...] = ()
    """Waiting jobs that get a GPU as soon as the job on it, which is among the moves, has left it."""
    summary: Summary = Summary()
