"""Questions and answers: ``muxflow.query.<service>.<verb>.<tenant>[.<node>]``, request and reply.

The tenant token is what permissions hold on to: a user's credentials allow only the own one. Operators may ask with
`ALL_TENANTS` in its place.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from muxflow.contracts.devices import DeviceCondition, GpuSample
from muxflow.contracts.event import (
    Bytes,
    Count,
    Event,
    Milliseconds,
    Percent,
    Permille,
    Seconds,
    ThreadPercentage,
    TimeNs,
)
from muxflow.contracts.jobs import ExitStatus, JobRecord, JobState, Placement, Priority
from muxflow.contracts.nodes import Gpu

ALL_TENANTS: Final = "_all"
"""Stands for every tenant in a query's subject. No tenant can have this name: names begin with a letter or digit."""


class JobsQuery(Event, frozen=True, kw_only=True):
    """List jobs, newest submission first."""

    states: tuple[JobState, ...] = ()
    """Empty means all."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line about a job."""

    tenant: str
    job: str
    state: JobState
    reason: str
    attempt: Count
    priority: Priority
    memory_bytes: Bytes
    placement: Placement | None
    """Where the current attempt is; null while there is none."""
    submitted_ns: TimeNs
    changed_ns: TimeNs
    last_exit: ExitStatus | None = None
    """How the last attempt that ended did so; null before the first end."""


class JobsReply(Event, frozen=True, kw_only=True):
    """Answer to `JobsQuery`."""

    jobs: tuple[JobSummary, ...]
    total: Count
    """How many match, beyond the limit too."""


class JobQuery(Event, frozen=True, kw_only=True):
    """Everything about one job."""

    job: str


class JobReply(Event, frozen=True, kw_only=True):
    """Answer to `JobQuery`."""

    record: JobRecord
    waiting: str | None = None
    """Why it does not run now, with numbers; null when it runs or has ended."""
    queue_position: Count | None = None
    """0 is next; null unless pending."""


class NodesQuery(Event, frozen=True, kw_only=True):
    """List nodes and their GPUs."""


class GpuSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU and what is on it."""

    gpu: Gpu
    tenant: str | None = None
    job: str | None = None
    attempt: Count | None = None
    job_state: JobState | None = None
    budget_permille: Permille | None = None


class NodeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One node."""

    node: str
    alive: bool
    """Whether its executor holds the node's lease."""
    lease_age_s: Seconds | None
    """Time since the scheduler last saw the lease renewed; null if it never did."""
    boot_id: str
    labels: dict[str, str]
    runners: tuple[str, ...]
    gpus: tuple[GpuSummary, ...]
    draining: bool = False


class NodesReply(Event, frozen=True, kw_only=True):
    """Answer to `NodesQuery`."""

    nodes: tuple[NodeSummary, ...]


class DevicesQuery(Event, frozen=True, kw_only=True):
    """List GPUs as a shared resource: how each one's offline side is, who is served on it, which job is there."""


class DeviceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU that is shared, or is to be."""

    node: str
    gpu: Gpu
    alive: bool
    """Whether the node's executor holds its lease."""
    watched: bool
    """Whether a monitor protects the GPU. One that is only declared has no state."""
    state: DeviceCondition | None = None
    """State of its offline side; null until its monitor has told it."""
    since_ns: TimeNs = 0
    cause: str = ""
    """Which reading brought it into this state."""
    recovery: str = ""
    """What has to happen before it takes new work, in words for people; empty when it does."""
    epoch: Count = 0
    """Number of the transition."""
    budget_permille: Permille | None = None
    sample: GpuSample | None = None
    """Newest readings that whoever answers knows: the scheduler knows those of the last transition."""
    sampled_ns: TimeNs = 0
    """When they were taken; 0 if there are none."""
    workload: str | None = None
    """Online workload on the GPU; null when there is none, or nobody told."""
    latency_target_ms: Milliseconds | None = None
    activity_peak_pct: Percent | None = None
    """Highest online activity of the last minutes, in percent; null when it is not known."""
    tenant: str | None = None
    job: str | None = None
    """Offline job that is placed there; null when there is none."""
    attempt: Count | None = None
    job_state: JobState | None = None
    sm_share_pct: ThreadPercentage | None = None
    next_sm_share_pct: ThreadPercentage | None = None
    """What a job would get that was placed there now; null leaves it to MPS."""
    closed: str | None = None
    """Why no new offline work is placed there, whether or not it is free; null if it may be."""


class DevicesReply(Event, frozen=True, kw_only=True):
    """Answer to `DevicesQuery`."""

    devices: tuple[DeviceSummary, ...]


class LogsQuery(Event, frozen=True, kw_only=True):
    """Read a piece of a job's output from the node that has it."""

    job: str
    attempt: Count | None = None
    """Null means the newest that this node knows."""
    offset: Count | None = None
    """Byte offset since the attempt began; null means the last `limit_bytes`."""
    limit_bytes: Annotated[int, Meta(ge=1, le=262144)] = 65536


class LogsReply(Event, frozen=True, kw_only=True):
    """Answer to `LogsQuery`."""

    attempt: Count
    data: bytes
    """As written by the job, base64 in JSON."""
    offset: Count
    """Where `data` begins; later than asked for when older output was dropped to keep the log bounded."""
    end: Count
    """Where the next read goes on."""
    running: bool
