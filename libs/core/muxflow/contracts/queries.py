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
from muxflow.contracts.profiles import SpeedModel

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


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a pair's offline job is expected to be."""

    normalized_throughput: Annotated[float, Meta(ge=0)]
    """Relative to running alone on that kind; 1 is undisturbed."""
    low: Annotated[float, Meta(ge=0)]
    """A tenth of such pairs are slower than this."""
    high: Annotated[float, Meta(ge=0)]
    """A tenth are faster."""
    fits_probability: Annotated[float, Meta(ge=0, le=1)]
    """Whether both will fit into the device's memory: 1 is certain."""
    basis: str
    """What it comes from: ``measured`` (this pair was), ``model``, or ``assumed`` (nothing is known: a low guess)."""


class PlacementOption(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs that are alike for a job, and what it would get there."""

    gpu_kind: str
    gpu_memory_bytes: Bytes
    workload: str | None = None
    """Online workload on them; null when there is none, or nobody told."""
    load_pct: Percent | None = None
    """Online activity went up to about this in the last minutes: a fifth of 100 tells GPUs apart. Null where nobody is
    served."""
    gpus: Count
    """How many there are, of living nodes."""
    free: Count
    """How many of them take a job now."""
    sm_share_pct: ThreadPercentage | None = None
    """What the job would get there; null leaves it to MPS."""
    speed: Speed | None = None
    """What is predicted for it there; null where it does not fit, or prediction is off."""
    note: str = ""
    """Why it cannot be placed there now; empty if it can."""


class JobReply(Event, frozen=True, kw_only=True):
    """Answer to `JobQuery`."""

    record: JobRecord
    waiting: str | None = None
    """Why it does not run now, with numbers; null when it runs or has ended."""
    queue_position: Count | None = None
    """0 is next; null unless pending."""
    profile: str | None = None
    """What is known of it from measurements, in words; null when it has ended."""
    speed: Speed | None = None
    """What was predicted for where it is; null while it is nowhere, or nothing was asked."""
    options: tuple[PlacementOption, ...] = ()
    """Where it could be, of all GPUs of living nodes; empty when it has ended."""


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
    forecast_peak_pct: Percent | None = None
    """How high the workload's activity is forecast to go until `forecast_until_ns`; null while there is no forecast."""
    forecast_until_ns: TimeNs = 0
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


class QueueQuery(Event, frozen=True, kw_only=True):
    """List waiting jobs, the next one first, and how matching went lately."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class QueuedJob(msgspec.Struct, frozen=True, kw_only=True):
    """One waiting job."""

    tenant: str
    job: str
    position: Count
    """Jobs ahead of it, of all tenants."""
    priority: Priority
    memory_bytes: Bytes
    kinds: tuple[str, ...] = ()
    """GPU kinds that it can run on; empty means any."""
    since_ns: TimeNs
    """When it began to wait."""
    waiting: str
    """Why it does not run now, with numbers."""
    profiled: bool = True
    """Whether it has been measured, or measuring it was given up."""


class Solve(msgspec.Struct, frozen=True, kw_only=True):
    """One solve of the matching, and its proof."""

    time_ns: TimeNs
    trigger: str
    """What asked for it, such as ``arrival`` or ``interval``."""
    jobs: Count
    """Jobs that took part, placed ones included."""
    gpus: Count
    job_classes: Count
    gpu_classes: Count
    placed: Count
    """Jobs that it gave a GPU."""
    moved: Count = 0
    """Running jobs that it gives another one."""
    throughput: Annotated[float, Meta(ge=0)] | None = None
    """Sum of the predicted normalized throughput of all jobs that have a GPU after it."""
    cost: Count
    """Cost of the flow, in the solver's units."""
    bound: Count
    """Least cost that any flow can have, by the dual certificate: equal to `cost`, or the solve would have failed."""
    solve_ms: Milliseconds
    """Time in the solver process, certificate included."""


class QueueReply(Event, frozen=True, kw_only=True):
    """Answer to `QueueQuery`."""

    jobs: tuple[QueuedJob, ...]
    total: Count
    """How many wait, beyond the limit too."""
    solves: tuple[Solve, ...] = ()
    """The newest ones, oldest first; for operators only."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """An offline job beside an online service on a GPU kind."""

    offline_key: str
    """`JobSpec.measured_as`."""
    memory_bytes: Bytes
    """The offline job's quota."""
    gpu_kind: str
    gpu_memory_bytes: Bytes | None = None
    workload: str | None = None
    """Null: nobody beside it."""
    sm_share_pct: ThreadPercentage | None = None
    """The offline job's; null: all."""


class SpeedsQuery(Event, frozen=True, kw_only=True):
    """Predict these pairs. At most 2,000 at once."""

    pairs: tuple[Pair, ...]


class SpeedsReply(Event, frozen=True, kw_only=True):
    """Answer to `SpeedsQuery`."""

    speeds: tuple[Speed, ...]
    """In the order of the pairs."""
    version: str = ""
    """Version of the model that was asked; empty while there is none."""
    generation: Count = 0
    """Grows whenever answers may have changed: a new model, a new profile."""


class PredictQuery(Event, frozen=True, kw_only=True):
    """Tell what a job would get on this kind of GPU, beside each online service there."""

    key: str
    """`JobSpec.measured_as`. Users ask for keys of their own tenant."""
    memory_bytes: Bytes
    gpu_kind: str


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an answer: the job beside one online service."""

    workload: str | None
    """Null: alone."""
    sm_share_pct: ThreadPercentage | None
    """What the job would get beside it, by the service's forecast."""
    online_activity_pct: Percent | None = None
    """Mean of the service's activity lately."""
    speed: Speed
    measured: Annotated[float, Meta(ge=0)] | None = None
    """Normalized throughput that was measured for this pair last; null if it never was."""


class PredictReply(Event, frozen=True, kw_only=True):
    """Answer to `PredictQuery`."""

    gpu_kind: str
    profiled: bool
    """Whether the job was measured alone on this kind."""
    predictions: tuple[Prediction, ...]
    model: SpeedModel | None = None
    """The model that was asked; null while there is none."""
