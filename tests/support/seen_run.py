"""A run that never was: observations with known figures."""

from __future__ import annotations

from typing import Any

from muxflow.client import Received
from muxflow.contracts import (
    DeviceCondition,
    DeviceState,
    EvictionAlert,
    ExitStatus,
    GpuDecision,
    GpuSample,
    JobFinished,
    JobState,
    JobSummary,
    NodeTelemetry,
    OfflineProfile,
    OfflineUsage,
    Slot,
    Speed,
)
from muxflow.contracts.jobs import Launch
from muxflow.contracts.queries import Solve
from muxflow.contracts.runs import RunExited, RunStarted
from muxflow_run import plan
from muxflow_run.host import HostFigures
from muxflow_run.load import Request, Window
from muxflow_run.observation import Observation
from muxflow_run.recorder import Seen
from muxflow_simgpu import Operation, OperationKind
from muxflow_simgpu.figures import Tally

SECOND = 1_000_000_000
BEGIN = 100 * SECOND
SECONDS = 10
PLAN = plan.plan(("T4", "H200"), window_s=SECONDS, simulated=True)
T4, H200 = "GPU-t4", "GPU-h200"
ONLINE, OFFLINE = 11, 22


def at(seconds: float) -> int:
    """CLOCK_MONOTONIC, so long after the begin of the window."""
    return BEGIN + round(seconds * SECOND)


def seen(kind: str, seconds: float, event: Any, **names: str) -> Seen:
    """An event that came so long after the begin of the window."""
    return Seen(
        at(seconds), Received(subject="", kind=kind, names=names, time_ns=at(seconds), sequence=None, event=event)
    )


def requests(latency_ms: float, *, lost: int = 0, slow_ms: float | None = None) -> tuple[Request, ...]:
    """Ten requests a second; the last ones lost, one in fifty slower if wanted."""
    made = []
    for number in range(10 * SECONDS):
        due_ns = at(number / 10)
        slow = slow_ms is not None and number % 50 == 0
        done_ns = due_ns + round((slow_ms if slow and slow_ms else latency_ms) * 1e6)
        made.append(Request(due_ns, done_ns, "gone" if number >= 10 * SECONDS - lost else None))
    return tuple(made)


def kernel(pid: int, start_s: float, end_s: float, *, work: float = 1.0) -> Operation:
    """A kernel that does this share of the work that it would do alone."""
    begin, end = at(start_s), at(end_s)
    return Operation(
        number=1,
        pid=pid,
        tag="",
        kind=OperationKind.KERNEL,
        enqueued_ns=begin,
        started_ns=begin,
        ended_ns=end,
        ran_ns=end - begin,
        work_ns=(end - begin) * work,
        context=0,
        stream=0,
        cancelled=False,
        sm_share=1.0,
        bandwidth=0.0,
    )


def tallies(offline_work: float) -> dict[int, Tally]:
    """The online side has the T4 in every other second; offline work goes on all the time."""
    found = {0: Tally(BEGIN), 1: Tally(BEGIN)}
    found[0].take([kernel(ONLINE, second, second + 1) for second in range(0, SECONDS, 2)])
    found[0].take([kernel(OFFLINE, second, second + 1, work=offline_work) for second in range(SECONDS)])
    return found


def telemetry() -> list[Seen]:
    """Readings of each second; the job launches 100 kernels a second."""
    return [
        seen(
            "telemetry",
            second + 0.5,
            NodeTelemetry(
                node="here",
                gpus=(
                    GpuSample(
                        gpu=T4,
                        state=DeviceCondition.HEALTHY,
                        utilization_pct=60,
                        memory_used_bytes=1,
                        memory_total_bytes=4,
                        online_activity_pct=50,
                        offline_busy_permille=450,
                        budget_permille=900,
                        offline=(usage(100 * second),),
                    ),
                    GpuSample(gpu=H200, sm_activity_pct=10),
                ),
            ),
        )
        for second in range(SECONDS)
    ]


def usage(launches: int) -> OfflineUsage:
    """What the job has used so far."""
    return OfflineUsage(
        tenant="default",
        job="small-1",
        attempt=1,
        launches=launches,
        busy_us=0,
        throttled_us=0,
        frozen_us=0,
        refused_bytes=0,
        memory_bytes=0,
    )


def happened() -> list[Seen]:
    """What the bus told of a job that ran, of a freeze, and of an eviction that is told twice."""
    run: dict[str, Any] = {"node": "here", "gpu": T4, "tenant": "default", "job": "small-1", "attempt": 1}
    slot = Slot(
        tenant="default",
        job="small-1",
        attempt=1,
        memory_quota_bytes=1,
        sm_share_pct=80,
        launch=Launch(command=("x",)),
    )
    evicted: dict[str, Any] = {**run, "cause": "burst"}
    return [
        seen("decisions", -3, GpuDecision(node="here", gpu=T4, term=1, generation=1, slots=(slot,))),
        seen("runs.started", -2, RunStarted(**run, pid=OFFLINE, boot_id="b", time_ns=1)),
        seen(
            "profiles.offline",
            -1,
            OfflineProfile(key="default/small", gpu_kind="T4", launches_per_s=200, busy_permille=900, confident=True),
        ),
        seen("devices.state", -1, state(DeviceCondition.OVERLIMIT, DeviceCondition.HEALTHY)),
        seen("devices.state", 4, state(DeviceCondition.OVERLIMIT, DeviceCondition.UNHEALTHY)),
        seen("devices.state", 5, state(DeviceCondition.OVERLIMIT, DeviceCondition.OVERLIMIT)),
        seen("alerts.eviction", 6, EvictionAlert(**evicted)),
        seen("alerts.eviction", 6.5, EvictionAlert(**evicted, total_ms=500)),
        seen("jobs.finished", -2, JobFinished(tenant="default", job="small-4", attempt=1, node="here", gpu=H200)),
        seen("jobs.finished", 8, JobFinished(tenant="default", job="small-2", attempt=1, node="here", gpu=H200)),
        seen("jobs.finished", 12, JobFinished(tenant="default", job="small-3", attempt=1, node="here", gpu=H200)),
    ]


def state(now: DeviceCondition, before: DeviceCondition) -> DeviceState:
    """The T4 changes its state."""
    return DeviceState(node="here", gpu=T4, state=now, previous=before, since_ns=1, cause="online activity 95 %")


def ended() -> Seen:
    """The end of the job."""
    return seen(
        "runs.exited",
        7,
        RunExited(
            node="here",
            gpu=T4,
            tenant="default",
            job="small-1",
            attempt=1,
            exit=ExitStatus(code=0),
            ended_ns=1,
            time_ns=1,
        ),
    )


def alone(latency_ms: float = 2.0, **different: Any) -> Observation:
    """A phase with nobody beside the service."""
    return observation(requests(latency_ms), seen=tuple(telemetry()), **different)


def beside(latency_ms: float, *, work: float, lost: int = 0) -> Observation:
    """A phase with a job beside the service."""
    job = JobSummary(
        tenant="default",
        job="small-1",
        state=JobState.RUNNING,
        reason="",
        attempt=1,
        priority=10,
        memory_bytes=1,
        placement=None,
        submitted_ns=0,
        changed_ns=0,
    )
    solve = Solve(
        time_ns=at(1),
        trigger="arrival",
        jobs=3,
        gpus=2,
        job_classes=1,
        gpu_classes=2,
        placed=2,
        cost=7,
        bound=7,
        solve_ms=1,
    )
    return observation(
        requests(latency_ms, lost=lost),
        seen=(*happened(), *telemetry()),
        tallies=tallies(work),
        jobs=(job,),
        solves=(solve,),
        predictions={
            ("small-1", 1): Speed(normalized_throughput=0.7, low=0.5, high=0.9, fits_probability=1.0, basis="model")
        },
    )


def observation(served: tuple[Request, ...], **different: Any) -> Observation:
    """One phase."""
    given: dict[str, Any] = {
        "plan": PLAN,
        "window": Window(BEGIN, float(SECONDS)),
        "warm_up_s": 5.0,
        "note": "as told",
        "requests": {"search": served},
        "seen": (),
        "gpus": {T4: PLAN.gpus[0], H200: PLAN.gpus[1]},
        "tallies": tallies(0.0),
        "online_pids": {"search": frozenset({ONLINE})},
        "host": HostFigures(cpu_pct=20, own_cpu_pct=10, starved_pct=1),
        "monotonic_of_utc_ns": 0,
    }
    return Observation(**{**given, **different})
