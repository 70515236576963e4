"""Offline jobs: what a team asks for, what becomes of it, and the record the scheduler keeps."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.contracts.event import Bytes, Count, Event, Seconds, Text, ThreadPercentage, TimeNs
from muxflow.contracts.names import JOB_NAME_PATTERN

JobName = Annotated[
    str, Meta(pattern=rf"^$(?!\n)|{JOB_NAME_PATTERN}", description="Empty, or 1 to 128 letters, digits, '.', '_', '-'.")
]
EnvName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$(?!\n)", max_length=256)]
NonEmpty = Annotated[str, Meta(min_length=1, max_length=4096)]
Priority = Annotated[int, Meta(ge=-1000, le=1000)]
"""-1000 to 1000; higher goes first."""


class GpuRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a job needs of a GPU."""

    memory_bytes: Annotated[int, Meta(ge=1, le=2**50)]
    """Device memory the job may use, context included; becomes its quota. The job file says ``memory: 8GiB``."""
    kinds: tuple[NonEmpty, ...] = ()
    """GPU kinds the job can run on, such as ``T4``; empty means any."""
    count: Annotated[int, Meta(ge=1, le=64)] = 1
    """GPUs at once. More than one is refused until gangs are supported."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How the job saves its state when asked. The signal is sent only while the job handles it."""

    signal: Annotated[str, Meta(pattern=r"^SIG(USR1|USR2|HUP|RTMIN(\+([1-9]|1[0-5]))?)$(?!\n)")] = "SIGUSR2"
    """SIGUSR1, SIGUSR2, SIGHUP or SIGRTMIN to SIGRTMIN+15."""
    grace_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    """How long one checkpoint may take before the job is stopped without it."""
    every_s: Annotated[float, Meta(gt=0, le=7 * 86400)] | None = None
    """Ask this often while the job runs; null means only before it is stopped."""


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A host directory or file shown inside the job's container."""

    source: NonEmpty
    target: NonEmpty
    read_only: bool = False


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a team submits. `name` and `tenant` may be left out on the wire: the subject has them."""

    name: JobName = ""
    tenant: JobName = ""
    command: Annotated[tuple[str, ...], Meta(min_length=1)]
    """Program and arguments, not interpreted by a shell."""
    image: NonEmpty | None = None
    """Container image for the docker runner; null runs a process on the node."""
    env: dict[EnvName, str] = {}
    """Environment variables. They are visible to whoever may read the tenant's jobs: see `secrets`."""
    secrets: dict[EnvName, NonEmpty] = {}
    """Environment variable to name of a secret that the node resolves; the value never travels on the bus."""
    workdir: NonEmpty | None = None
    """Directory to start in; null means the attempt's own scratch directory."""
    mounts: tuple[Mount, ...] = ()
    gpu: GpuRequest
    profile_key: NonEmpty | None = None
    """Jobs with one key share a profile; null means the job's own name."""
    priority: Priority = 0
    """Higher goes first."""
    checkpoint: Checkpoint | None = None
    retries: Annotated[int, Meta(ge=0, le=100)] = 3
    """How often a failed attempt is tried again. Evictions and lost nodes do not count."""
    stop_grace_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    """Time between SIGTERM and SIGKILL when the job must stop."""

    @property
    def measured_as(self) -> str:
        """Name under which its profile is kept: ``<tenant>/<profile key>``. Tenants share no profiles."""
        return f"{self.tenant}/{self.profile_key or self.name}"


class JobSubmit(Event, frozen=True, kw_only=True):
    """Run this job. Submitting the identical job again changes nothing."""

    spec: JobSpec


class JobCancel(Event, frozen=True, kw_only=True):
    """Stop this job for good, whatever it is doing."""

    reason: Text = ""


class JobAccepted(Event, frozen=True, kw_only=True):
    """The job is recorded and will not be lost."""

    tenant: str
    job: str
    submission_id: str
    """`id` of the submission that was accepted."""


class JobRejected(Event, frozen=True, kw_only=True):
    """The submission (or cancellation) is not valid and changed nothing."""

    tenant: str
    job: str
    submission_id: str
    reason: str
    """What is wrong and how to put it right."""
    field: str | None = None
    """Path of the offending field, such as ``spec.gpu.memory_bytes``; null when no single field is at fault."""


class StopCause(StrEnum):
    """Why an attempt was ended by MuxFlow rather than by itself."""

    DECISION = "decision"
    """The scheduler no longer wants it there (cancel, move, operator's request)."""
    EVICTION = "eviction"
    """The online side needed the GPU."""
    LEASE = "lease"
    """The node lost touch with the bus for longer than its lease."""
    SHUTDOWN = "shutdown"
    """The node's executor was told to drain."""
    BREACH = "breach"
    """It broke a rule that protects the online side, and would again: the job has failed."""


class GpuError(msgspec.Struct, frozen=True, kw_only=True):
    """A CUDA error after which every call of a process fails, as the process told it."""

    code: Count
    """The CUresult."""
    name: str
    """Such as ``CUDA_ERROR_ILLEGAL_ADDRESS``."""
    call: str = ""
    """The first call that gave it; empty when that is not known. What caused it may have been an earlier one."""
    pid: Count = 0
    time_ns: TimeNs = 0
    """When it was given; 0 when that is not known."""

    def describe(self) -> str:
        """Say what happened, in a few words."""
        return f"{self.call or 'a call'} gave {self.name} ({self.code})"


class ExitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt's main process ended, as the kernel reported it."""

    code: Annotated[int, Meta(ge=0, le=255)] | None = None
    """Exit code, if it exited."""
    signal: str | None = None
    """Name of the signal that killed it, such as ``SIGKILL``, if one did."""
    oom_killed: bool | None = None
    """Whether the kernel's OOM killer did it; null when the node cannot tell."""
    error: str | None = None
    """Why the program never started (not found, not executable, secret missing), if it did not."""
    lost: bool = False
    """True when nobody saw the exit (the shim was killed, the node rebooted): code and signal are unknown."""
    stopped_by: StopCause | None = None
    """Set when MuxFlow had asked it to stop before it ended; exit code 0 is then no proof of completed work."""
    stop_reason: str | None = None
    """Why MuxFlow asked, in words for people; null when it did not, or did not say."""
    gpu_error: GpuError | None = None
    """The first of its processes' sticky CUDA errors; null when there was none, or nobody saw it."""
    refused_bytes: Bytes | None = None
    """GPU memory that its processes were refused because the job had not asked for so much, each attempt to get it
    counted; null when there was none, or nobody saw it."""

    @property
    def succeeded(self) -> bool:
        """Ended by itself with code 0."""
        return self.code == 0 and self.stopped_by is None and self.error is None and not self.lost

    def describe(self) -> str:
        """Say in a few words how it ended."""
        if self.error is not None:
            return self.error
        words = self._how()
        if self.gpu_error is not None:
            words = f"{words}, after {self.gpu_error.describe()}"
        if self.refused_bytes and not self.succeeded and self.stopped_by is None:
            words += f", after it was refused {_mebibytes(self.refused_bytes)} of GPU memory beyond what it asked for"
        if self.stopped_by is StopCause.BREACH and self.stop_reason:
            words = f"{words}: {self.stop_reason}"
        return words

    def _how(self) -> str:
        if self.lost:
            return "exit status lost"
        by = f", stopped by {self.stopped_by.value}" if self.stopped_by else ""
        if self.oom_killed:
            return f"killed by the kernel: out of memory{by}"
        if self.signal is not None:
            return f"killed by {self.signal}{by}"
        return f"exit code {self.code}{by}"


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{max(1, round(size_bytes / 2**20))} MiB"


class JobFinished(Event, frozen=True, kw_only=True):
    """Terminal: the job ran to its end with exit code 0."""

    tenant: str
    job: str
    attempt: Count
    node: str
    gpu: str


class JobFailed(Event, frozen=True, kw_only=True):
    """Terminal: no attempt succeeded and no retry is left."""

    tenant: str
    job: str
    attempt: Count
    """The last attempt; 0 if none was ever made."""
    reason: str
    exit: ExitStatus | None = None


class JobCancelled(Event, frozen=True, kw_only=True):
    """Terminal: cancelled on request; no process of it is left."""

    tenant: str
    job: str
    attempt: Count
    """The last attempt; 0 if none was ever made."""
    reason: str = ""


class Purpose(StrEnum):
    """Why an attempt runs."""

    RUN = "run"
    PROFILE = "profile"
    """Alone on a GPU, to measure it."""
    PROBE = "probe"
    """Beside a chosen online workload, to measure the pair."""


class JobState(StrEnum):
    """Where a job is. The last three are terminal."""

    PENDING = "pending"
    PROFILING = "profiling"
    """Placed (or running) with purpose *profile*."""
    ASSIGNED = "assigned"
    """Placed; not yet reported as started."""
    RUNNING = "running"
    STOPPING = "stopping"
    """No longer wanted where it is; its processes may still live."""
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self in (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where an attempt is, or is to be."""

    node: str
    gpu: str
    """UUID of the GPU."""
    session: str = ""
    """The node's lease session in which the attempt was placed there; it ends with that session at the latest."""
    purpose: Purpose = Purpose.RUN
    sm_share_pct: ThreadPercentage | None = None
    """MPS active thread percentage; null leaves it to MPS."""


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a job's story."""

    time_ns: TimeNs
    state: JobState
    """State after the change."""
    stimulus: str
    """What happened, such as ``run-exited``."""
    detail: str = ""


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's record of one job: the value under its key in the bucket ``jobs``."""

    tenant: str
    job: str
    spec: JobSpec
    submission_id: str
    submitted_ns: TimeNs
    """When the server stored the submission."""
    state: JobState = JobState.PENDING
    reason: str = ""
    """Why it is in this state, in words for people."""
    attempt: Count = 0
    """Number of the current or last attempt; 0 before the first."""
    placement: Placement | None = None
    """Where the current attempt is; null unless profiling, assigned, running or stopping."""
    last_placement: Placement | None = None
    """Where the newest attempt is or was: its output is there, and terminal events name it."""
    profiled: bool = False
    """Whether its profile is known, or has been given up."""
    cancel_requested: bool = False
    failures: Count = 0
    """Attempts that failed by themselves, or were stopped for a breach; more than `spec.retries` ends the job."""
    losses: Count = 0
    """Attempts whose end nobody saw; more than a set number ends the job."""
    evictions: Count = 0
    """Attempts that MuxFlow ended."""
    not_before_ns: TimeNs = 0
    """Back-off: not placed before this time."""
    changed_ns: TimeNs = 0
    started_ns: TimeNs = 0
    """When the current attempt was reported as started; 0 if it was not."""
    last_exit: ExitStatus | None = None
    """How the last attempt that ended did so; null before the first end."""
    checkpoints: Count = 0
    checkpointed_ns: TimeNs = 0
    """When the job last said that it saved its state, by the node's clock; a repeated event does not count twice."""
    story: tuple[Transition, ...] = ()
    """The most recent transitions, oldest first."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Identity of one attempt of one job."""

    tenant: str
    job: str
    attempt: Count

    def __str__(self) -> str:
        return f"{self.tenant}/{self.job}#{self.attempt}"


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a job's specification that its runner needs."""

    command: tuple[str, ...]
    image: str | None = None
    env: dict[str, str] = {}
    secrets: dict[str, str] = {}
    workdir: str | None = None
    mounts: tuple[Mount, ...] = ()
    checkpoint: Checkpoint | None = None
    stop_grace_s: Seconds = 10.0

    @classmethod
    def of(cls, spec: JobSpec) -> Launch:
        """Take a runner's part out of a whole specification."""
        return cls(
            command=spec.command,
            image=spec.image,
            env=spec.env,
            secrets=spec.secrets,
            workdir=spec.workdir,
            mounts=spec.mounts,
            checkpoint=spec.checkpoint,
            stop_grace_s=spec.stop_grace_s,
        )


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One offline job that shall run on a GPU."""

    tenant: str
    job: str
    attempt: Count
    submission_id: str = ""
    """`JobRecord.submission_id`: a job submitted anew under a name that is free again inherits nothing of the old one.
    Empty when not known."""
    purpose: Purpose = Purpose.RUN
    memory_quota_bytes: Bytes
    sm_share_pct: ThreadPercentage | None = None
    profile_key: str = ""
    """`JobSpec.measured_as`: under which name its measurements are kept. Empty when not known."""
    launch: Launch

    @property
    def key(self) -> Attempt:
        """Identity of the attempt."""
        return Attempt(tenant=self.tenant, job=self.job, attempt=self.attempt)


class GpuDecision(Event, frozen=True, kw_only=True):
    """The whole wish for one GPU's offline side: desired state, not a command. Only the newest counts."""

    node: str
    gpu: str
    term: Count
    """Fencing term of the scheduler that decided: a lower one is never obeyed after a higher one."""
    generation: Count
    """Grows with every decision for this GPU within a term."""
    session: str = ""
    """The node's lease session this was decided for; in any other session nothing of it may be started."""
    slots: tuple[Slot, ...] = ()
    withdrawn: tuple[Attempt, ...] = ()
    """Attempts that must not run any more and whose `exited` is awaited. The executor stops them; one that it never
    started it reports as exited all the same, and never starts it later."""
    cause: str = ""
    """Why this differs from the decision before, in words for people."""

    @property
    def version(self) -> tuple[int, int]:
        """Order of decisions for one GPU."""
        return (self.term, self.generation)
