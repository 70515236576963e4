"""The one table of the bus: every subject, its event, where it is kept, who may publish it and who may read it.

Streams, durables, buckets, permissions, AsyncAPI and the permission tests all derive from what stands here.
A template's placeholders are names that `encode_token` encodes. ``{tenant}``, ``{node}`` and ``{workload}`` are also
what credentials are bound to: a `user` to one tenant, a `node` to one node, an `online` service to one workload.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, Literal

import msgspec

from muxflow.contracts import dead, devices, jobs, nodes, profiles, queries, requests, runs
from muxflow.contracts.event import Event
from muxflow.contracts.names import decode_token, encode_token

DAY_S: Final = 86_400
MIB: Final = 2**20
GIB: Final = 2**30


class Role(StrEnum):
    """Whose credentials. Each is allowed its rows of the table and nothing else."""

    PROVISIONER = "provisioner"
    """Creates streams, durables and buckets; used at installation and upgrade only."""
    SCHEDULER = "scheduler"
    PROFILER = "profiler"
    PREDICTOR = "predictor"
    KUBE = "kube"
    NODE = "node"
    """Monitor, evictor and executor of one node."""
    ONLINE = "online"
    """An online service that reports its own latency."""
    USER = "user"
    """Whoever submits jobs in one tenant."""
    OPERATOR = "operator"
    """Reads everything, asks everything, replays dead letters."""
    OBSERVER = "observer"
    """On-call engineers, dashboards, pagers: reads what holds no job specification."""


class AckPolicy(StrEnum):
    """When a message counts as delivered. The only place where this is chosen."""

    AFTER_EFFECT = "after-effect"
    """Acked by the handler once its effect is durable; else delivered again after a delay."""
    NONE = "none"
    """Not acked: readers of the newest state, live readers."""


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream keeps its messages."""

    name: str
    subjects: tuple[str, ...]
    last_per_subject: bool = False
    """Keep only the newest message of each subject."""
    max_age_s: float = 0
    """0 keeps for ever."""
    max_bytes: int
    discard: Literal["old", "new"] = "old"
    storage: Literal["file", "memory"] = "file"
    doc: str


class Durable(msgspec.Struct, frozen=True, kw_only=True):
    """A pre-created pull consumer that one service binds to."""

    stream: str
    name: str
    role: Role
    filters: tuple[str, ...]
    ack_wait_s: float = 3
    """What a killed service had in hand comes again after this long. Handlers that take longer signal progress."""
    max_deliver: int = 200
    """Deliveries before a message becomes a dead letter. Generous, because a service that is killed again and again for
    another reason uses them up as well."""
    max_ack_pending: int = 4096


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """A key-value bucket and the only role that writes it."""

    name: str
    writer: Role
    key: str
    """Template of its keys; ``{node}`` binds a node's credentials to its own key."""
    ttl_s: float = 0
    """0 keeps for ever. Settings override it for the leases."""
    readers: tuple[Role, ...] = ()
    value: type[msgspec.Struct]
    doc: str


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of subject and the one type of event on it."""

    name: str
    """Short name, such as ``jobs.submit``."""
    template: str
    event: type[Event]
    stream: str | None
    """Null: core NATS only."""
    publishers: tuple[Role, ...]
    readers: tuple[Role, ...]
    reply: type[Event] | None = None
    """For questions: the type of the answer."""

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the template's placeholders, in order."""
        return tuple(re.findall(r"\{(\w+)\}", self.template))

    def of(self, **names: str) -> str:
        """Make the concrete subject: ``JOBS_SUBMIT.of(tenant="default", job="x")``."""
        return self.template.format_map({key: encode_token(name) for key, name in names.items()})

    def pattern(self, **names: str) -> str:
        """Make a subscription or permission pattern: placeholders not given become ``*``."""
        tokens = {key: encode_token(names[key]) if key in names else "*" for key in self.placeholders}
        return self.template.format_map(tokens)

    def parse(self, subject: str) -> dict[str, str]:
        """Give back the names in a concrete subject; ValueError if it is not one of these."""
        wanted, got = self.template.split("."), subject.split(".")
        if len(wanted) != len(got):
            raise ValueError(f"{subject!r} is not {self.template!r}")
        names: dict[str, str] = {}
        for want, token in zip(wanted, got, strict=True):
            if want.startswith("{"):
                names[want[1:-1]] = decode_token(token)
            elif want != token:
                raise ValueError(f"{subject!r} is not {self.template!r}")
        return names


_PEOPLE: Final = (Role.OPERATOR, Role.OBSERVER)

JOBS_SUBMIT: Final = Subject(
    name="jobs.submit",
    template="muxflow.jobs.submit.{tenant}.{job}",
    event=jobs.JobSubmit,
    stream="JOBS",
    publishers=(Role.USER, Role.KUBE, Role.OPERATOR),
    readers=(Role.SCHEDULER, Role.USER, Role.OPERATOR),
)
JOBS_CANCEL: Final = Subject(
    name="jobs.cancel",
    template="muxflow.jobs.cancel.{tenant}.{job}",
    event=jobs.JobCancel,
    stream="JOBS",
    publishers=(Role.USER, Role.KUBE, Role.OPERATOR),
    readers=(Role.SCHEDULER, Role.USER, Role.OPERATOR),
)


def _job_outcome(verb: str, event: type[Event]) -> Subject:
    return Subject(
        name=f"jobs.{verb}",
        template=f"muxflow.jobs.{verb}.{{tenant}}.{{job}}",
        event=event,
        stream="JOBS",
        publishers=(Role.SCHEDULER,),
        readers=(Role.USER, Role.KUBE, *_PEOPLE),
    )


JOBS_ACCEPTED: Final = _job_outcome("accepted", jobs.JobAccepted)
JOBS_REJECTED: Final = _job_outcome("rejected", jobs.JobRejected)
JOBS_FINISHED: Final = _job_outcome("finished", jobs.JobFinished)
JOBS_FAILED: Final = _job_outcome("failed", jobs.JobFailed)
JOBS_CANCELLED: Final = _job_outcome("cancelled", jobs.JobCancelled)


def _run_fact(verb: str, event: type[Event]) -> Subject:
    return Subject(
        name=f"runs.{verb}",
        template=f"muxflow.runs.{verb}.{{node}}.{{tenant}}.{{job}}",
        event=event,
        stream="RUNS",
        publishers=(Role.NODE, Role.KUBE, Role.OPERATOR),  # operators replay dead letters
        readers=(Role.SCHEDULER, Role.USER, *_PEOPLE),
    )


RUNS_STARTED: Final = _run_fact("started", runs.RunStarted)
RUNS_CHECKPOINTED: Final = _run_fact("checkpointed", runs.RunCheckpointed)
RUNS_EVICTED: Final = _run_fact("evicted", runs.RunEvicted)
RUNS_EXITED: Final = _run_fact("exited", runs.RunExited)

DECISIONS: Final = Subject(
    name="decisions",
    template="muxflow.decisions.{node}.{gpu}",
    event=jobs.GpuDecision,
    stream="DECISIONS",
    publishers=(Role.SCHEDULER,),
    readers=(Role.SCHEDULER, Role.PROFILER, Role.NODE, Role.KUBE, Role.OPERATOR),
)

REQUESTS_PROFILE: Final = Subject(
    name="requests.profile",
    template="muxflow.requests.profile.{key}",
    event=requests.ProfileRequest,
    stream="REQUESTS",
    publishers=(Role.PROFILER, Role.PREDICTOR, Role.OPERATOR),
    readers=(Role.SCHEDULER, Role.OPERATOR),
)
REQUESTS_PROBE: Final = Subject(
    name="requests.probe",
    template="muxflow.requests.probe.{key}",
    event=requests.ProbeRequest,
    stream="REQUESTS",
    publishers=(Role.PROFILER, Role.PREDICTOR, Role.OPERATOR),
    readers=(Role.SCHEDULER, Role.OPERATOR),
)
REQUESTS_EVICT: Final = Subject(
    name="requests.evict",
    template="muxflow.requests.evict.{node}.{gpu}",
    event=requests.EvictRequest,
    stream="REQUESTS",
    publishers=(Role.OPERATOR,),
    readers=(Role.SCHEDULER, Role.OPERATOR),
)
REQUESTS_DEVICE: Final = Subject(
    name="requests.device",
    template="muxflow.requests.device.{node}.{gpu}",
    event=requests.DeviceRequest,
    stream="DEVICE_REQUESTS",
    publishers=(Role.OPERATOR,),
    readers=(Role.NODE, Role.SCHEDULER, Role.OPERATOR),
)

NODES_STATE: Final = Subject(
    name="nodes.state",
    template="muxflow.nodes.state.{node}",
    event=nodes.NodeState,
    stream="NODES",
    publishers=(Role.NODE,),
    readers=(Role.SCHEDULER, Role.PROFILER, Role.PREDICTOR, Role.KUBE, *_PEOPLE),
)
ONLINE_STATE: Final = Subject(
    name="online.state",
    template="muxflow.online.state.{node}.{gpu}",
    event=nodes.OnlineState,
    stream="NODES",
    publishers=(Role.NODE,),
    readers=(Role.NODE, Role.SCHEDULER, Role.PROFILER, *_PEOPLE),
)

DEVICES_STATE: Final = Subject(
    name="devices.state",
    template="muxflow.devices.state.{node}.{gpu}",
    event=devices.DeviceState,
    stream="DEVICES",
    publishers=(Role.NODE,),
    readers=(Role.NODE, Role.SCHEDULER, *_PEOPLE),
)
DEVICES_FAULT: Final = Subject(
    name="devices.fault",
    template="muxflow.devices.fault.{node}.{gpu}",
    event=devices.DeviceFault,
    stream="DEVICES",
    publishers=(Role.NODE,),
    readers=(Role.NODE, Role.SCHEDULER, *_PEOPLE),
)


def _profile(kind: str, names: str, event: type[Event]) -> Subject:
    return Subject(
        name=f"profiles.{kind}",
        template=f"muxflow.profiles.{kind}.{names}",
        event=event,
        stream="PROFILES",
        publishers=(Role.PROFILER,),
        readers=(Role.PROFILER, Role.PREDICTOR, Role.SCHEDULER, *_PEOPLE),
    )


PROFILES_OFFLINE: Final = _profile("offline", "{key}.{gpu_kind}", profiles.OfflineProfile)
PROFILES_ONLINE: Final = _profile("online", "{workload}.{gpu_kind}", profiles.OnlineProfile)
PROFILES_CORUN: Final = _profile("corun", "{offline_key}.{workload}.{gpu_kind}", profiles.CorunProfile)
SPEEDS: Final = Subject(
    name="speeds",
    template="muxflow.speeds.{model}",
    event=profiles.SpeedModel,
    stream="PROFILES",
    publishers=(Role.PREDICTOR,),
    readers=(Role.PREDICTOR, Role.SCHEDULER, *_PEOPLE),
)


def _alert(kind: str, event: type[Event]) -> Subject:
    return Subject(
        name=f"alerts.{kind}",
        template=f"muxflow.alerts.{kind}.{{node}}",
        event=event,
        stream="ALERTS",
        publishers=(Role.NODE,),
        readers=_PEOPLE,
    )


ALERTS_EVICTION: Final = _alert("eviction", devices.EvictionAlert)
ALERTS_DEVICE: Final = _alert("device", devices.DeviceAlert)
ALERTS_ONLINE: Final = _alert("online", devices.OnlineAlert)

TELEMETRY: Final = Subject(
    name="telemetry",
    template="muxflow.telemetry.{node}",
    event=devices.NodeTelemetry,
    stream="TELEMETRY",
    publishers=(Role.NODE,),
    readers=(Role.PROFILER, *_PEOPLE),
)
SLO: Final = Subject(
    name="slo",
    template="muxflow.slo.{workload}",
    event=devices.SloReport,
    stream=None,
    publishers=(Role.ONLINE,),
    readers=(Role.NODE, *_PEOPLE),
)


def _query(
    service: Role,
    verb: str,
    event: type[Event],
    reply: type[Event],
    *,
    on_node: bool = False,
    askers: tuple[Role, ...],
) -> Subject:
    room = "executor" if on_node else service.value
    return Subject(
        name=f"query.{room}.{verb}",
        template=f"muxflow.query.{room}.{verb}.{{tenant}}" + (".{node}" if on_node else ""),
        event=event,
        stream=None,
        publishers=askers,
        readers=(service,),
        reply=reply,
    )


_ASKERS: Final = (Role.USER, Role.OPERATOR)
QUERY_JOBS: Final = _query(Role.SCHEDULER, "jobs", queries.JobsQuery, queries.JobsReply, askers=_ASKERS)
QUERY_JOB: Final = _query(Role.SCHEDULER, "job", queries.JobQuery, queries.JobReply, askers=_ASKERS)
QUERY_NODES: Final = _query(
    Role.SCHEDULER, "nodes", queries.NodesQuery, queries.NodesReply, askers=(Role.OPERATOR, Role.OBSERVER)
)
QUERY_DEVICES: Final = _query(
    Role.SCHEDULER, "devices", queries.DevicesQuery, queries.DevicesReply, askers=(Role.OPERATOR, Role.OBSERVER)
)
QUERY_QUEUE: Final = _query(Role.SCHEDULER, "queue", queries.QueueQuery, queries.QueueReply, askers=_ASKERS)
QUERY_PREDICT: Final = _query(Role.PREDICTOR, "predict", queries.PredictQuery, queries.PredictReply, askers=_ASKERS)
QUERY_SPEEDS: Final = _query(
    Role.PREDICTOR, "speeds", queries.SpeedsQuery, queries.SpeedsReply, askers=(Role.SCHEDULER, Role.OPERATOR)
)
QUERY_LOGS: Final = _query(Role.NODE, "logs", queries.LogsQuery, queries.LogsReply, on_node=True, askers=_ASKERS)

DEAD: Final = Subject(
    name="dead",
    template="muxflow.dead.{service}",
    event=dead.DeadLetter,
    stream="DEAD",
    publishers=(Role.SCHEDULER, Role.PROFILER, Role.PREDICTOR, Role.KUBE, Role.NODE),
    readers=(Role.OPERATOR,),
)

SUBJECTS: Final[tuple[Subject, ...]] = (
    JOBS_SUBMIT,
    JOBS_CANCEL,
    JOBS_ACCEPTED,
    JOBS_REJECTED,
    JOBS_FINISHED,
    JOBS_FAILED,
    JOBS_CANCELLED,
    RUNS_STARTED,
    RUNS_CHECKPOINTED,
    RUNS_EVICTED,
    RUNS_EXITED,
    DECISIONS,
    REQUESTS_PROFILE,
    REQUESTS_PROBE,
    REQUESTS_EVICT,
    REQUESTS_DEVICE,
    NODES_STATE,
    ONLINE_STATE,
    DEVICES_STATE,
    DEVICES_FAULT,
    PROFILES_OFFLINE,
    PROFILES_ONLINE,
    PROFILES_CORUN,
    SPEEDS,
    ALERTS_EVICTION,
    ALERTS_DEVICE,
    ALERTS_ONLINE,
    TELEMETRY,
    SLO,
    QUERY_JOBS,
    QUERY_JOB,
    QUERY_NODES,
    QUERY_DEVICES,
    QUERY_QUEUE,
    QUERY_PREDICT,
    QUERY_SPEEDS,
    QUERY_LOGS,
    DEAD,
)

MAX_DELIVERIES_ADVISORY: Final = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>"

STREAMS: Final[tuple[Stream, ...]] = (
    Stream(
        name="JOBS",
        subjects=("muxflow.jobs.>",),
        max_bytes=2 * GIB,
        discard="new",
        doc="Submissions and outcomes. Refuses new messages when full; a job is purged days after its end.",
    ),
    Stream(
        name="RUNS",
        subjects=("muxflow.runs.>",),
        max_age_s=14 * DAY_S,
        max_bytes=2 * GIB,
        doc="Facts about attempts.",
    ),
    Stream(
        name="DECISIONS",
        subjects=("muxflow.decisions.>",),
        last_per_subject=True,
        max_bytes=GIB,
        doc="Desired state of every GPU.",
    ),
    Stream(
        name="REQUESTS",
        subjects=("muxflow.requests.profile.*", "muxflow.requests.probe.*", "muxflow.requests.evict.*.*"),
        max_age_s=DAY_S,
        max_bytes=256 * MIB,
        doc="What profiler, predictor and operators ask of the scheduler.",
    ),
    Stream(
        name="DEVICE_REQUESTS",
        subjects=("muxflow.requests.device.*.*",),
        last_per_subject=True,
        max_bytes=64 * MIB,
        doc="Operators' standing wish for each device. Has no durables, so that nodes may create readers.",
    ),
    Stream(
        name="NODES",
        subjects=("muxflow.nodes.>", "muxflow.online.>"),
        last_per_subject=True,
        max_bytes=256 * MIB,
        doc="What each node offers and which online workload is on each GPU.",
    ),
    Stream(
        name="DEVICES",
        subjects=("muxflow.devices.>",),
        max_age_s=7 * DAY_S,
        max_bytes=GIB,
        doc="Transitions and faults of devices.",
    ),
    Stream(
        name="PROFILES",
        subjects=("muxflow.profiles.>", "muxflow.speeds.>"),
        last_per_subject=True,
        max_bytes=GIB,
        doc="Measurements of workloads and the speed models made from them.",
    ),
    Stream(
        name="ALERTS",
        subjects=("muxflow.alerts.>",),
        max_age_s=7 * DAY_S,
        max_bytes=GIB,
        doc="What people are told.",
    ),
    Stream(
        name="TELEMETRY",
        subjects=("muxflow.telemetry.>",),
        max_age_s=900,
        max_bytes=256 * MIB,
        storage="memory",
        doc="Readings, once a second, for readers that start late.",
    ),
    Stream(
        name="DEAD",
        subjects=("muxflow.dead.>", MAX_DELIVERIES_ADVISORY),
        max_age_s=30 * DAY_S,
        max_bytes=GIB,
        doc="Messages that could not be handled, and the server's word on those it gave up delivering.",
    ),
)

DURABLES: Final[tuple[Durable, ...]] = (
    Durable(
        stream="JOBS",
        name="scheduler",
        role=Role.SCHEDULER,
        filters=("muxflow.jobs.submit.*.*", "muxflow.jobs.cancel.*.*"),
    ),
    Durable(stream="RUNS", name="scheduler", role=Role.SCHEDULER, filters=("muxflow.runs.*.*.*.*",)),
    Durable(stream="REQUESTS", name="scheduler", role=Role.SCHEDULER, filters=("muxflow.requests.evict.*.*",)),
)

BUCKET_JOBS: Final = Bucket(
    name="jobs",
    writer=Role.SCHEDULER,
    key="{tenant}.{job}",
    value=jobs.JobRecord,
    doc="One record per job, placement included, written by compare-and-swap.",
)
BUCKET_LEADER: Final = Bucket(
    name="leader",
    writer=Role.SCHEDULER,
    key="{service}",
    ttl_s=3,
    value=nodes.LeaderLease,
    doc="Who leads each service.",
)
BUCKET_NODE_LEASES: Final = Bucket(
    name="node_leases",
    writer=Role.NODE,
    key="{node}",
    ttl_s=120,
    readers=(Role.SCHEDULER,),
    value=nodes.NodeLease,
    doc="Which executors are alive.",
)
BUCKETS: Final[tuple[Bucket, ...]] = (BUCKET_JOBS, BUCKET_LEADER, BUCKET_NODE_LEASES)
OBJECT_STORES: Final[dict[str, Role]] = {"models": Role.PREDICTOR}
"""Object stores, and the only role that writes and reads each."""


def stream_of(subject: Subject) -> Stream | None:
    """Find the stream that keeps a subject."""
    return next((stream for stream in STREAMS if stream.name == subject.stream), None)


def subject_of(concrete: str) -> Subject | None:
    """Find the kind of a concrete subject; None if it is not one of ours."""
    for subject in SUBJECTS:
        try:
            subject.parse(concrete)
        except ValueError:
            continue
        return subject
    return None
