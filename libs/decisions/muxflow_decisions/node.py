"""What an executor must do so that its node becomes as decided.

Called with the newest decision of each GPU and every attempt the node has a record of, after anything has changed.
Instructions are idempotent: what is already being done is not asked for again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum

import msgspec

from muxflow.contracts import Attempt, GpuDecision, Slot, StopCause


class LocalState(StrEnum):
    """Where an attempt is on its node."""

    STARTING = "starting"
    """Its directory exists; the program may or may not run."""
    RUNNING = "running"
    STOPPING = "stopping"
    """It was asked to stop; processes of it may still live."""
    ENDED = "ended"
    """No process of it is left, or there never was one."""


class LocalAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that the node has a record of."""

    state: LocalState
    gpu: str
    reported: bool = False
    """Whether the bus has acked its `exited`."""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Record the intent, then start the attempt."""

    gpu: str
    slot: Slot


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Stop the attempt: SIGTERM, grace, SIGKILL."""

    attempt: Attempt
    cause: StopCause
    reason: str


class Decline(msgspec.Struct, frozen=True, kw_only=True):
    """Never start the attempt: record it as ended and report `exited` with this cause."""

    attempt: Attempt
    gpu: str
    cause: StopCause
    reason: str


class Forget(msgspec.Struct, frozen=True, kw_only=True):
    """Remove the attempt's record: it has ended, that is known, and nobody wants it."""

    attempt: Attempt


NodeInstruction = Start | Stop | Decline | Forget


def newer(current: GpuDecision | None, incoming: GpuDecision) -> bool:
    """Whether a decision that arrived replaces the one in force. Older terms and generations never do."""
    return current is None or incoming.version > current.version


def reconcile(
    desired: Mapping[str, GpuDecision | None],
    local: Mapping[Attempt, LocalAttempt],
    *,
    session: str | None,
    draining: bool = False,
) -> list[NodeInstruction]:
    """Compare what is wanted with what is there.

    `desired` maps each GPU of the node to its newest decision, None until one was read. `session` is the lease session
    that is held now, None when there is none: then everything stops and nothing starts. An attempt with a record is
    never started; a GPU and a job have one live attempt at a time; an attempt without a known wish runs on.
    """
    if session is None:
        return list(_stop_all(local, StopCause.LEASE, "the node's lease is lost"))
    instructions: list[NodeInstruction] = []
    if draining:
        instructions += _stop_all(local, StopCause.SHUTDOWN, "the executor is shutting down")
    else:
        instructions += _stop_unwanted(desired, local)
    instructions += _decline(desired, local, session=session, draining=draining)
    if not draining:
        instructions += _start(desired, local, session=session)
    instructions += _forget(desired, local)
    return instructions


def _live(state: LocalState) -> bool:
    return state in (LocalState.STARTING, LocalState.RUNNING)


def _stop_all(local: Mapping[Attempt, LocalAttempt], cause: StopCause, reason: str) -> Iterator[Stop]:
    for attempt, found in sorted(local.items()):
        if _live(found.state):
            yield Stop(attempt=attempt, cause=cause, reason=reason)


def _stop_unwanted(desired: Mapping[str, GpuDecision | None], local: Mapping[Attempt, LocalAttempt]) -> Iterator[Stop]:
    for attempt, found in sorted(local.items()):
        decision = desired.get(found.gpu)
        if not _live(found.state) or decision is None or attempt in (slot.key for slot in decision.slots):
            continue
        reason = decision.cause or "no longer wanted there"
        yield Stop(attempt=attempt, cause=StopCause.DECISION, reason=reason)


def _decline(
    desired: Mapping[str, GpuDecision | None],
    local: Mapping[Attempt, LocalAttempt],
    *,
    session: str,
    draining: bool,
) -> Iterator[Decline]:
    """Answer for attempts that were never started here and never will be.

    Without it, an attempt that was withdrawn before the executor saw it would be awaited for ever.
    """
    for gpu, decision in sorted(desired.items()):
        if decision is None or decision.session != session:
            continue
        for attempt in decision.withdrawn:
            if attempt not in local:
                reason = decision.cause or "withdrawn before it started"
                yield Decline(attempt=attempt, gpu=gpu, cause=StopCause.DECISION, reason=reason)
        for slot in decision.slots:
            if draining and slot.key not in local:
                reason = "the executor is shutting down"
                yield Decline(attempt=slot.key, gpu=gpu, cause=StopCause.SHUTDOWN, reason=reason)


def _start(
    desired: Mapping[str, GpuDecision | None], local: Mapping[Attempt, LocalAttempt], *, session: str
) -> Iterator[Start]:
    there = [(attempt, found.gpu) for attempt, found in local.items() if found.state is not LocalState.ENDED]
    busy_gpus = {gpu for _, gpu in there}
    busy_jobs = {(attempt.tenant, attempt.job) for attempt, _ in there}
    for gpu, decision in sorted(desired.items()):
        if decision is None or decision.session != session:
            continue
        for slot in decision.slots:
            job = (slot.tenant, slot.job)
            if slot.key in local or gpu in busy_gpus or job in busy_jobs:
                continue
            busy_gpus.add(gpu)
            busy_jobs.add(job)
            yield Start(gpu=gpu, slot=slot)


def _forget(desired: Mapping[str, GpuDecision | None], local: Mapping[Attempt, LocalAttempt]) -> Iterator[Forget]:
    for attempt, found in sorted(local.items()):
        decision = desired.get(found.gpu)
        if found.state is not LocalState.ENDED or not found.reported or decision is None:
            continue
        if attempt not in decision.withdrawn and attempt not in (slot.key for slot in decision.slots):
            yield Forget(attempt=attempt)
