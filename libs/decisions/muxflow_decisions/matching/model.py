"""What jobs need and GPUs offer, and which of them can go together."""

from __future__ import annotations

import msgspec

from muxflow.contracts import Gpu, JobRecord, JobSpec, NodeState, OnlineState
from muxflow_decisions.matching import devices

JobKey = tuple[str, str]
"""Tenant and job."""

ASSUMED_PERMILLE = 500
"""Normalized throughput of a pair of which nothing is known and nothing was assumed by the caller."""


class Need(msgspec.Struct, frozen=True, array_like=True):
    """What a job needs, and what predictions know it by. Jobs with one need are one class."""

    memory_bytes: int
    kinds: tuple[str, ...]
    """GPU kinds that will do; empty means any."""
    runner: str
    key: str = ""
    """`JobSpec.measured_as`; empty if no prediction is to be used."""
    alone: bool = False
    """Whether only a GPU will do where it can be measured alone."""

    @classmethod
    def of(cls, spec: JobSpec) -> Need:
        """Read a job's need off its specification."""
        return cls(
            spec.gpu.memory_bytes,
            tuple(sorted(set(spec.gpu.kinds))),
            "docker" if spec.image else "process",
            spec.measured_as,
        )


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """What a GPU and its node offer, and who is served on it. GPUs with one offer are one class.

    The fewer values `load`, `sm_share_pct` and `assumed_permille` take, the fewer classes there are.
    """

    kind: str
    memory_bytes: int
    runners: tuple[str, ...]
    load: int = 0
    """How busy the online side is there, as `devices.load` tells."""
    workload: str | None = None
    """Online service on it; None if there is none, or nobody knows of one."""
    sm_share_pct: int | None = None
    """SM share that a job would get there, 1 to 100; None leaves it to MPS."""
    assumed_permille: int = ASSUMED_PERMILLE
    """Normalized throughput, in thousandths, of a job for which there is no prediction here."""
    quiet: bool = False
    """Whether a job can be measured alone here: it is watched, and known to serve no online workload."""

    @classmethod
    def of(
        cls,
        state: NodeState,
        gpu: Gpu,
        online: OnlineState | None = None,
        *,
        sm_share_pct: int | None = None,
        assumed_permille: int = ASSUMED_PERMILLE,
        quiet: bool = False,
    ) -> Offer:
        """Read the offer off a node's inventory, and off what is known of the online workload on the GPU."""
        return cls(
            gpu.kind,
            gpu.memory_bytes,
            tuple(sorted(set(state.runners))),
            devices.load(watched=state.watched, online=online),
            online.workload if online is not None else None,
            sm_share_pct,
            assumed_permille,
            quiet,
        )


class WaitingJob(msgspec.Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """A pending job."""

    key: JobKey
    need: Need
    priority: int = 0
    submitted_ns: int = 0
    held_since_ns: int = 0
    not_before_ns: int = 0
    """Back-off: it may run from this time on."""
    last_exit: str = ""
    """How its last attempt ended, in words."""
    profiled: bool = True
    """Whether it has been measured, or measuring it was given up."""

    @classmethod
    def of(cls, record: JobRecord) -> WaitingJob:
        """Read it off a pending job's record."""
        return cls(
            key=(record.tenant, record.job),
            need=Need.of(record.spec),
            priority=record.spec.priority,
            submitted_ns=record.submitted_ns,
            held_since_ns=record.changed_ns,
            not_before_ns=record.not_before_ns,
            last_exit=record.last_exit.describe() if record.last_exit else "",
            profiled=record.profiled,
        )

    @property
    def order(self) -> tuple[int, int, JobKey]:
        """Place in the queue: higher priority first, then older submission, then name."""
        return (-self.priority, self.submitted_ns, self.key)


class OpenGpu(msgspec.Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """A GPU that takes work: its node lives and is not draining, and nothing closes it.

    It is free unless a placed job of the same problem says that it is on it.
    """

    node: str
    uuid: str
    offer: Offer
    session: str = ""
    """The node's lease session."""
    reserved_for: JobKey | None = None
    """A job that is on its way here: the GPU is offered to it alone."""

    @classmethod
    def of(cls, state: NodeState, gpu: Gpu, *, session: str, online: OnlineState | None = None) -> OpenGpu:
        """Take one GPU of a node's inventory."""
        return cls(node=state.node, uuid=gpu.uuid, offer=Offer.of(state, gpu, online), session=session)

    @property
    def place(self) -> tuple[str, str]:
        """Node and UUID."""
        return (self.node, self.uuid)


class PlacedJob(msgspec.Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """A job that has a GPU."""

    key: JobKey
    need: Need
    gpu: tuple[str, str]
    """Node and UUID."""
    movable: bool = True
    """Whether it may be given another one. One that may not keeps its GPU, and takes no part."""
    saves: bool = True
    """Whether it declares a checkpoint: a move throws less of its work away."""


def fits(need: Need, offer: Offer) -> bool:
    """Whether a job can run there at all."""
    return (
        need.memory_bytes <= offer.memory_bytes
        and (not need.kinds or offer.kind in need.kinds)
        and need.runner in offer.runners
        and (offer.quiet or not need.alone)
    )
