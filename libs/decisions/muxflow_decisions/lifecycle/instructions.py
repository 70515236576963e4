"""What a step of the machine asks its caller to do, once the record is committed."""

from __future__ import annotations

import msgspec

from muxflow.contracts import JobAccepted, JobCancelled, JobFailed, JobFinished, JobRecord, JobRejected


class Announce(msgspec.Struct, frozen=True, kw_only=True):
    """Publish this event. Its id is derived from the record: a repetition is the same message."""

    event: JobAccepted | JobRejected | JobFinished | JobFailed | JobCancelled


class Decide(msgspec.Struct, frozen=True, kw_only=True):
    """Publish this GPU's desired state anew (`decide`); if the record has no placement any more, the GPU is free."""

    node: str
    gpu: str
    cause: str
    """For `GpuDecision.cause`."""


class Wake(msgspec.Struct, frozen=True, kw_only=True):
    """Match again at this time: the job's back-off ends."""

    at_ns: int


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """The stimulus changed nothing, for this reason."""

    reason: str


Instruction = Announce | Decide | Wake | Note


class Outcome(msgspec.Struct, frozen=True):
    """Result of one step."""

    record: JobRecord
    """To be committed before anything else; the very object passed in when nothing changed."""
    instructions: tuple[Instruction, ...] = ()
