"""Facts about attempts, published by the executor of the node where they run (by kube for Pods)."""

from __future__ import annotations

from muxflow.contracts.event import Count, Event, TimeNs
from muxflow.contracts.jobs import ExitStatus, Purpose, StopCause


class RunEvent(Event, frozen=True, kw_only=True):
    """What all facts about an attempt have in common."""

    node: str
    gpu: str
    tenant: str
    job: str
    attempt: Count


class RunStarted(RunEvent, frozen=True, kw_only=True):
    """The attempt's program runs."""

    purpose: Purpose = Purpose.RUN
    pid: Count
    boot_id: str
    """The node's ``/proc/sys/kernel/random/boot_id``."""


class RunCheckpointed(RunEvent, frozen=True, kw_only=True):
    """The job said that it saved its state."""

    asked_ns: TimeNs = 0
    """When it had been asked; 0 if it was not."""


class RunEvicted(RunEvent, frozen=True, kw_only=True):
    """MuxFlow has begun to stop the attempt; `RunExited` follows when no process of it is left."""

    cause: StopCause
    reason: str = ""


class RunExited(RunEvent, frozen=True, kw_only=True):
    """The attempt is over: no process of it is left."""

    exit: ExitStatus
    started_ns: TimeNs = 0
    """0 if it never started."""
    ended_ns: TimeNs
