"""Why a job waits, in words and numbers, for whoever asks about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

import msgspec

from muxflow.contracts import Gpu, NodeState
from muxflow_decisions.lifecycle.retry import holds_back
from muxflow_decisions.matching.devices import Closed
from muxflow_decisions.matching.model import Need, Offer, WaitingJob, fits

_NAMED = 3
"""Nodes that a sentence names before it goes on with a number."""


class FleetGpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU that the scheduler knows of, whatever its condition."""

    node: str
    uuid: str
    offer: Offer
    alive: bool = True
    """Whether its node holds a lease."""
    draining: bool = False
    busy: bool = False
    """Whether an offline job is placed on it."""
    closed: Closed | None = None
    """Why its state keeps new work off it."""

    @classmethod
    def of(cls, state: NodeState, gpu: Gpu, *, alive: bool, busy: bool, closed: Closed | None = None) -> FleetGpu:
        """Take one GPU of a node's inventory."""
        return cls(
            node=state.node,
            uuid=gpu.uuid,
            offer=Offer.of(state, gpu),
            alive=alive,
            draining=state.draining,
            busy=busy,
            closed=closed,
        )


class FleetView(msgspec.Struct, frozen=True):
    """All GPUs at one moment."""

    gpus: tuple[FleetGpu, ...]


def why_waiting(job: WaitingJob, fleet: FleetView, *, position: int, now_ns: int) -> str:
    """Say why a pending job does not run, the first thing that stands in its way.

    `position` is the number of waiting jobs ahead of it in the queue.
    """
    if holds_back(since_ns=job.held_since_ns, until_ns=job.not_before_ns, now_ns=now_ns):
        after = f" after {job.last_exit}" if job.last_exit else ""
        return f"retry in {(job.not_before_ns - now_ns) / 1e9:.1f} s{after}"
    alive = [gpu for gpu in fleet.gpus if gpu.alive]
    if not alive:
        return f"no node is alive; known: {_nodes(fleet.gpus)}" if fleet.gpus else "no node has offered a GPU yet"
    able = [gpu for gpu in alive if fits(job.need, gpu.offer)]
    if not able:
        return _nothing_fits(job.need, alive, fleet)
    taking = [gpu for gpu in able if not gpu.draining]
    if not taking:
        return f"{_all(able)} on nodes that are draining: {_nodes(able)}"
    free = sum(not gpu.busy and gpu.closed is None for gpu in taking)
    if free:
        return f"{_count(free, 'GPU')} that {'fits is' if free == 1 else 'fit are'} free; {_ahead(position)}"
    return f"{_taken(taking)}; {_ahead(position)}"


def _taken(gpus: Sequence[FleetGpu]) -> str:
    """Say for GPUs that fit, and are not free, what they are instead."""
    busy = sum(gpu.busy for gpu in gpus)
    if busy == len(gpus):
        return f"{_all(gpus)} busy"
    states = [gpu.closed for gpu in gpus if not gpu.busy and gpu.closed is not None]
    if len(gpus) == 1:
        return f"the only GPU that fits is {states[0]}"
    alike = Counter(state.how for state in states)
    told = [f"{busy} {_is(busy)} busy"] if busy else []
    for how, number in alike.items():
        told.append(f"{number} {_is(number)} {how}{_because([state.cause for state in states if state.how == how])}")
    return f"{len(gpus)} GPUs fit; {', '.join(told)}"


def _because(causes: Sequence[str]) -> str:
    first, *others = dict.fromkeys(filter(None, causes)) or [""]
    return (f": {first}" if first else "") + (f" (and {_count(len(others), 'other cause')})" if others else "")


def _nothing_fits(need: Need, alive: Sequence[FleetGpu], fleet: FleetView) -> str:
    """Name the first demand that no living GPU meets; or that each is met, and never by one GPU."""
    dead = [gpu for gpu in fleet.gpus if not gpu.alive and fits(need, gpu.offer)]
    if dead:
        return f"{_all(dead)} on nodes that are not alive: {_nodes(dead)}"
    left = alive
    for meets, sentence in _DEMANDS:
        meeting = [gpu for gpu in left if meets(need, gpu.offer)]
        if not meeting:
            return sentence(need, left)
        left = meeting
    raise AssertionError("every demand is met by some GPU that fits")


def _no_runner(need: Need, left: Sequence[FleetGpu]) -> str:
    return f"no node offers the {need.runner} runner; there are {_nodes(left)}"


def _no_kind(need: Need, left: Sequence[FleetGpu]) -> str:
    there = ", ".join(sorted({gpu.offer.kind for gpu in left}))
    return f"no GPU of kind {' or '.join(need.kinds)}; there are {there}"


def _no_memory(need: Need, left: Sequence[FleetGpu]) -> str:
    largest = max(left, key=lambda gpu: (gpu.offer.memory_bytes, gpu.node))
    which = "the largest GPU"
    if need.kinds:
        which += f" of kind {' or '.join(need.kinds)}"
    if need.runner != "process":
        which += f" with the {need.runner} runner"
    return (
        f"needs {_size(need.memory_bytes)}, {which} has {_size(largest.offer.memory_bytes)} "
        f"({largest.offer.kind} on {largest.node})"
    )


_DEMANDS: tuple[tuple[Callable[[Need, Offer], bool], Callable[[Need, Sequence[FleetGpu]], str]], ...] = (
    (lambda need, offer: need.runner in offer.runners, _no_runner),
    (lambda need, offer: not need.kinds or offer.kind in need.kinds, _no_kind),
    (lambda need, offer: need.memory_bytes <= offer.memory_bytes, _no_memory),
)


def _all(gpus: Collection[FleetGpu]) -> str:
    return "the only GPU that fits is" if len(gpus) == 1 else f"all {len(gpus)} GPUs that fit are"


def _ahead(position: int) -> str:
    if position == 0:
        return "it is next in the queue"
    return f"{_count(position, 'job')} {_is(position)} ahead in the queue"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _nodes(gpus: Collection[FleetGpu]) -> str:
    names = sorted({gpu.node for gpu in gpus})
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _size(size_bytes: int) -> str:
    for exponent, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size_bytes >= 1024**exponent:
            return f"{size_bytes / 1024**exponent:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size_bytes} bytes"
