"""Settings of the executor: section ``[executor]``. How long a lease lasts stands in ``[lease]``, for all services."""

from __future__ import annotations

import socket
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from muxflow.settings import Settings
from muxflow_decisions.eviction import LadderPolicy

MIB = 2**20
_LADDER: Final = LadderPolicy()


class StopSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How attempts are stopped: ``[executor.stop]``. What a job declares for itself is bounded by this."""

    checkpoint_longest_s: Annotated[float, Meta(ge=0, le=3600)] = _LADDER.checkpoint_longest_s
    """Longest time to save, whatever the job declares."""
    longest_s: Annotated[float, Meta(ge=0, le=3600)] = _LADDER.stop_longest_s
    """Longest time to obey SIGTERM, whatever the job declares."""
    hard_grace_s: Annotated[float, Meta(gt=0, le=3600)] = _LADDER.hard_grace_s
    """The same when the online side cannot wait (hard Overlimit)."""
    disconnect_s: Annotated[float, Meta(gt=0, le=3600)] = _LADDER.disconnect_s
    """How long MPS may then take to let go of the job before it is killed."""


class ExecutorSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is the executor's own."""

    node: Annotated[str, Meta(min_length=1, max_length=253)] = msgspec.field(default_factory=socket.gethostname)
    """Name of this node; default: its host name. One executor may have it."""
    inventory: Annotated[str, Meta(min_length=1)] | None = None
    """File that declares the node's GPUs: nothing watches them, and jobs on them are not protected. Null: the GPUs that
    NVML finds, each under the eyes of this node's monitor."""
    run_dir: Annotated[str, Meta(min_length=1)] | None = None
    """Run directory of the node, the same for monitor, evictor and executor; null: the one that they agree on. Only
    where GPUs are watched."""
    state_dir: Annotated[str, Meta(min_length=1)] = "/var/lib/muxflow/executor"
    """Attempts, their output, checkpoints and the outbox. On a local disk; used by one executor."""
    secrets_dir: Annotated[str, Meta(min_length=1)] | None = None
    """Directory of ``<tenant>/<name>`` files with the secrets that jobs may ask for; null: none."""
    labels: dict[str, str] = {}
    """What the node says about itself, for people and for constraints to come."""
    drain_on_stop: bool = False
    """Stop the jobs on SIGTERM too, as on SIGINT; otherwise they run on until the next executor takes them over."""
    nice: Annotated[int, Meta(ge=0, le=19)] = 5
    """Added to the niceness of jobs: 5 leaves a third of a contended core to a job beside an online service's thread.
    More would have a job that is to save its state, or to end, wait for a busy host."""
    stop: StopSection = StopSection()
    log_bytes: Annotated[int, Meta(ge=4096, le=2**40)] = 64 * MIB
    """Bound on the kept output of one attempt; the oldest half is dropped when it is reached."""
    kept_outputs: Annotated[int, Meta(ge=0, le=1_000_000)] = 200
    """How many ended attempts' output is kept."""
    kept_output_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 1024 * MIB
    """Bound on that output together."""
    kept_checkpoints_s: Annotated[float, Meta(ge=0, le=10**9)] = 7 * 86_400.0
    """How long a job's checkpoint directory is kept after its last attempt here."""


class ExecutorSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the executor reads."""

    executor: ExecutorSection = msgspec.field(default_factory=ExecutorSection)


def ladder_policy(settings: ExecutorSettings) -> LadderPolicy:
    """Give the bounds of every stop. How long one may take when the lease is lost is for all services to know."""
    section = settings.executor.stop
    return LadderPolicy(
        checkpoint_longest_s=section.checkpoint_longest_s,
        stop_longest_s=section.longest_s,
        lease_grace_s=settings.lease.node_grace_s,
        hard_grace_s=section.hard_grace_s,
        disconnect_s=section.disconnect_s,
    )
