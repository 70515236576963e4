"""Why a job waits, in words and numbers, for whoever asks about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

from muxflow.contracts import Gpu, NodeState
from muxflow_decisions.lifecycle.retry import holds_back
from muxflow_decisions.matching.devices import Closed
from muxflow_decisions.matching.model import JobKey, Need, Offer, WaitingJob, fits
from muxflow_decisions.matching.problem import MatchingPolicy
from muxflow_decisions.matching.speeds import Speeds
from muxflow_decisions.matching.words import count, is_, size

_NAMED: Final = 3
"""Nodes or jobs that a sentence names before it goes on with a number."""

_NO_SPEEDS: Final = Speeds()
_DEFAULTS: Final = MatchingPolicy()


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
    reserved_for: JobKey | None = None
    """The job that is on its way there."""

    @classmethod
    def of(
        cls,
        state: NodeState,
        gpu: Gpu,
        *,
        alive: bool,
        busy: bool,
        closed: Closed | None = None,
        offer: Offer | None = None,
        reserved_for: JobKey | None = None,
    ) -> FleetGpu:
        """Take one GPU of a node's inventory, by its inventory alone if no `offer` tells more."""
        return cls(
            node=state.node,
            uuid=gpu.uuid,
            offer=offer or Offer.of(state, gpu),
            alive=alive,
            draining=state.draining,
            busy=busy,
            closed=closed,
            reserved_for=reserved_for,
        )

    @property
    def takes_work(self) -> bool:
        """Whether a job can be placed there now, the one that it is reserved for if it is."""
        return self.alive and not self.draining and not self.busy and self.closed is None


class FleetView(msgspec.Struct, frozen=True):
    """All GPUs at one moment."""

    gpus: tuple[FleetGpu, ...]


def why_waiting(
    job: WaitingJob,
    fleet: FleetView,
    *,
    position: int,
    now_ns: int,
    speeds: Speeds = _NO_SPEEDS,
    policy: MatchingPolicy = _DEFAULTS,
) -> str:
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
    unsafe = [gpu for gpu in able if not policy.safe(speeds.find(job.need, gpu.offer))]
    safe = [gpu for gpu in able if gpu not in unsafe] if unsafe else able
    if not safe:
        return _unsafe(job.need, unsafe, speeds)
    what = _ALONE if job.need.alone else _FITTING
    taking = [gpu for gpu in safe if not gpu.draining]
    if not taking:
        return f"{what.all_(safe)} on nodes that are draining: {_nodes(safe)}"
    told = _standing(job, taking, what)
    if not any(gpu.takes_work for gpu in taking) and (spared := [gpu for gpu in unsafe if gpu.takes_work]):
        told += (
            f"; {count(len(spared), 'other')} {is_(len(spared))} free, but it is {_unsafe(job.need, spared, speeds)}"
        )
    return f"{what.why}{told}; {_ahead(position)}"


class _Kind(msgspec.Struct, frozen=True):
    """GPUs of one kind, in words."""

    one: str
    many: str
    there_are: str
    why: str = ""

    def all_(self, gpus: Collection[FleetGpu]) -> str:
        """Begin a sentence about all of them."""
        return f"the only {self.one} is" if len(gpus) == 1 else f"all {len(gpus)} {self.many} are"

    def count(self, number: int) -> str:
        """Begin a sentence about some of them."""
        return f"{number} {self.one} is" if number == 1 else f"{number} {self.many} are"


_FITTING: Final = _Kind("GPU that fits", "GPUs that fit", "GPUs fit")
_ALONE: Final = _Kind(
    "GPU without an online service",
    "GPUs without an online service",
    "GPUs are without an online service",
    "waits to be measured alone: ",
)


def _standing(job: WaitingJob, gpus: Sequence[FleetGpu], what: _Kind) -> str:
    """Say for GPUs that would do how they are."""
    reserved = [gpu for gpu in gpus if gpu.takes_work and gpu.reserved_for not in (None, job.key)]
    own = [gpu for gpu in gpus if gpu.reserved_for == job.key]
    if own:
        return f"GPU {own[0].uuid} of {own[0].node} is reserved for it" + (" and not free yet" if own[0].busy else "")
    free = sum(gpu.takes_work for gpu in gpus) - len(reserved)
    if free:
        return f"{what.count(free)} free"
    busy = sum(gpu.busy for gpu in gpus)
    if busy == len(gpus):
        return f"{what.all_(gpus)} busy"
    told = [f"{busy} {is_(busy)} busy"] if busy else []
    if reserved:
        told.append(f"{len(reserved)} {is_(len(reserved))} reserved for {_jobs(reserved)}")
    states = [gpu.closed for gpu in gpus if not gpu.busy and gpu.closed is not None]
    if len(gpus) == 1:
        return f"the only {what.one} is {states[0] if states else told[0].split(' is ', 1)[1]}"
    for how, number in Counter(state.how for state in states).items():
        told.append(f"{number} {is_(number)} {how}{_because([state.cause for state in states if state.how == how])}")
    return f"{len(gpus)} {what.there_are}; {', '.join(told)}"


def _unsafe(need: Need, gpus: Sequence[FleetGpu], speeds: Speeds) -> str:
    """Say that a job is predicted not to fit into the memory that is left on any of these."""
    found = [(speed.fits_permille, gpu) for gpu in gpus if (speed := speeds.find(need, gpu.offer)) is not None]
    fits_permille, best = max(found, key=lambda pair: (pair[0], pair[1].node, pair[1].uuid))
    beside = f"beside {best.offer.workload} on" if best.offer.workload else "on"
    classes = len({gpu.offer for gpu in gpus})
    at_best = "" if classes == 1 else f"on any of {len(gpus)} GPUs; at best "
    return f"predicted not to fit {at_best}{beside} {best.offer.kind} (fits {fits_permille / 10:.0f}%)"


def _jobs(gpus: Sequence[FleetGpu]) -> str:
    names = sorted("/".join(gpu.reserved_for) for gpu in gpus if gpu.reserved_for)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _because(causes: Sequence[str]) -> str:
    first, *others = dict.fromkeys(filter(None, causes)) or [""]
    return (f": {first}" if first else "") + (f" (and {count(len(others), 'other cause')})" if others else "")


def _nothing_fits(need: Need, alive: Sequence[FleetGpu], fleet: FleetView) -> str:
    """Name the first demand that no living GPU meets; or that each is met, and never by one GPU."""
    dead = [gpu for gpu in fleet.gpus if not gpu.alive and fits(need, gpu.offer)]
    if dead:
        return f"{_FITTING.all_(dead)} on nodes that are not alive: {_nodes(dead)}"
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
        f"needs {size(need.memory_bytes)}, {which} has {size(largest.offer.memory_bytes)} "
        f"({largest.offer.kind} on {largest.node})"
    )


def _none_quiet(_need: Need, left: Sequence[FleetGpu]) -> str:
    return f"waits to be measured alone: no GPU that fits is without an online service, of {len(left)}"


_DEMANDS: tuple[tuple[Callable[[Need, Offer], bool], Callable[[Need, Sequence[FleetGpu]], str]], ...] = (
    (lambda need, offer: need.runner in offer.runners, _no_runner),
    (lambda need, offer: not need.kinds or offer.kind in need.kinds, _no_kind),
    (lambda need, offer: need.memory_bytes <= offer.memory_bytes, _no_memory),
    (lambda need, offer: offer.quiet or not need.alone, _none_quiet),
)


def _ahead(position: int) -> str:
    if position == 0:
        return "it is next in the queue"
    return f"{count(position, 'job')} {is_(position)} ahead in the queue"


def _nodes(gpus: Collection[FleetGpu]) -> str:
    names = sorted({gpu.node for gpu in gpus})
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
