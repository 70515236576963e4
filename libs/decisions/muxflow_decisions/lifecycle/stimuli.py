"""What can happen to a job. Facts about its attempts are the contracts' own events."""

from __future__ import annotations

import re

import msgspec

from muxflow.contracts import JobSpec, Placement, RunCheckpointed, RunEvicted, RunExited, RunStarted


class Submit(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody submitted a job under this name again."""

    spec: JobSpec
    """As admitted."""
    submission_id: str


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """Stop the job for good."""

    reason: str = ""


class Assign(msgspec.Struct, frozen=True, kw_only=True):
    """Matching found a place for it."""

    placement: Placement


class Withdraw(msgspec.Struct, frozen=True, kw_only=True):
    """The job shall leave its GPU and go back to the queue: an operator's request, a move, a GPU that is gone."""

    reason: str
    attempt: int | None = None
    """Only this attempt is meant; null means whichever is placed."""


class ProfileDone(msgspec.Struct, frozen=True, kw_only=True):
    """The job's profile is known."""

    goes_on: bool = False
    """Whether an attempt that is being measured goes on where it is; else it makes room for who waits there."""


class ProfileGivenUp(msgspec.Struct, frozen=True, kw_only=True):
    """The job will not be measured any further; it runs without a profile."""

    reason: str
    goes_on: bool = False
    """As in `ProfileDone`."""


class NodeLost(msgspec.Struct, frozen=True, kw_only=True):
    """A node's lease session is over and fenced off: every attempt placed in it has ended.

    To be sent only when `muxflow_decisions.lease` allows it and the lease entry is deleted or has a new session.
    """

    node: str
    session: str
    """The session that is over. Attempts placed in another one are not meant."""
    reason: str = ""


Stimulus = (
    Submit
    | Cancel
    | Assign
    | Withdraw
    | ProfileDone
    | ProfileGivenUp
    | NodeLost
    | RunStarted
    | RunCheckpointed
    | RunEvicted
    | RunExited
)


def name(stimulus: Stimulus) -> str:
    """Name a stimulus as stories and logs do: ``run-exited``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(stimulus).__name__).lower()
