"""What jobs need, what GPUs offer, and how much a job would rather have one GPU than another."""

from __future__ import annotations

from typing import Final

import msgspec

from muxflow.contracts import Gpu, JobRecord, JobSpec, NodeState, OnlineState
from muxflow_decisions.matching import devices

JobKey = tuple[str, str]
"""Tenant and job."""

COST_STEPS: Final = 1000
"""Costs of pairs are whole numbers from 0 to this."""

_LOAD_STEPS: Final = 100
"""A tenth of it tells calm from busy: of GPUs that suit a job alike, it gets the calmest."""


class Need(msgspec.Struct, frozen=True):
    """What a job needs. Jobs with one need are one class."""

    memory_bytes: int
    kinds: tuple[str, ...]
    """GPU kinds that will do; empty means any."""
    runner: str

    @classmethod
    def of(cls, spec: JobSpec) -> Need:
        """Read a job's need off its specification."""
        return cls(spec.gpu.memory_bytes, tuple(sorted(set(spec.gpu.kinds))), "docker" if spec.image else "process")


class Offer(msgspec.Struct, frozen=True):
    """What a GPU and its node offer. GPUs with one offer are one class."""

    kind: str
    memory_bytes: int
    runners: tuple[str, ...]
    load: int = 0
    """How busy the online side is there, as `devices.load` tells."""

    @classmethod
    def of(cls, state: NodeState, gpu: Gpu, online: OnlineState | None = None) -> Offer:
        """Read the offer off a node's inventory, and off what is known of the online workload on the GPU."""
        load = devices.load(watched=state.watched, online=online)
        return cls(gpu.kind, gpu.memory_bytes, tuple(sorted(set(state.runners))), load)


class WaitingJob(msgspec.Struct, frozen=True, kw_only=True):
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
        )

    @property
    def order(self) -> tuple[int, int, JobKey]:
        """Place in the queue: higher priority first, then older submission, then name."""
        return (-self.priority, self.submitted_ns, self.key)


class FreeGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU that takes a job now: its node lives and is not draining, nothing of ours is on it, nothing closes it."""

    node: str
    uuid: str
    offer: Offer
    session: str = ""
    """The node's lease session."""

    @classmethod
    def of(cls, state: NodeState, gpu: Gpu, *, session: str, online: OnlineState | None = None) -> FreeGpu:
        """Take one GPU of a node's inventory."""
        return cls(node=state.node, uuid=gpu.uuid, offer=Offer.of(state, gpu, online), session=session)


def fits(need: Need, offer: Offer) -> bool:
    """Whether a job can run there at all."""
    return (
        need.memory_bytes <= offer.memory_bytes
        and (not need.kinds or offer.kind in need.kinds)
        and need.runner in offer.runners
    )


def cost(need: Need, offer: Offer, *, largest_bytes: int) -> int:
    """Cost of a pair that fits, 0 (best) to `COST_STEPS`.

    Mostly the memory it leaves unused, so that big GPUs stay free; a little how busy the online side is there. The one
    place where pairs are weighed. It decides between GPUs only, never between jobs: their order in the queue comes
    first. `largest_bytes` is the largest memory on offer.
    """
    unused = (COST_STEPS - _LOAD_STEPS) * (offer.memory_bytes - need.memory_bytes) // largest_bytes
    return unused + _LOAD_STEPS * offer.load // (devices.LOADS - 1)
