"""Everything that was seen of one phase: raw material, from which `phase` makes figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from muxflow.contracts import GpuSample, JobSummary, OfflineProfile, Speed, SpeedModel
from muxflow.contracts.queries import Solve
from muxflow_run.host import HostFigures
from muxflow_run.load import Request, Window
from muxflow_run.plan import Gpu, Plan
from muxflow_run.recorder import Seen
from muxflow_simgpu.figures import Tally


class Stay(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a job on a GPU, as the node's facts tell it. Times are CLOCK_MONOTONIC."""

    job: str
    attempt: int
    gpu: str
    """UUID."""
    pid: int
    purpose: str
    from_ns: int
    to_ns: int | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Which attempt."""
        return self.job, self.attempt


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One phase."""

    plan: Plan
    window: Window
    warm_up_s: float
    note: str
    requests: dict[str, tuple[Request, ...]]
    """By service."""
    seen: tuple[Seen, ...]
    gpus: dict[str, Gpu]
    """By UUID."""
    tallies: dict[int, Tally]
    """By index; empty where there are no logs of devices."""
    online_pids: dict[str, frozenset[int]]
    """By service."""
    online_kernels: dict[int, list[tuple[int, int]]] = {}
    """By process: launch and end of every kernel; empty where there are no logs of devices."""
    by_hand: dict[int, int] = {}
    """Index of a GPU to the process id of the offline program that was started there by hand."""
    jobs: tuple[JobSummary, ...] = ()
    predictions: dict[tuple[str, int], Speed] = {}
    """By attempt."""
    solves: tuple[Solve, ...] = ()
    model: SpeedModel | None = None
    host: HostFigures
    monotonic_of_utc_ns: int
    """What to add to a time of day to get CLOCK_MONOTONIC."""

    def at_s(self, monotonic_ns: int) -> float:
        """Seconds since the begin of the window."""
        return round((monotonic_ns - self.window.begin_ns) / 1e9, 3)

    def within(self, seen: Seen) -> bool:
        """Whether an event came inside of the window."""
        return self.window.begin_ns <= seen.time_ns < self.window.end_ns

    def events(self, kind: str) -> Iterator[tuple[Seen, Any]]:
        """Events of one kind, in the order of their arrival."""
        return ((seen, seen.received.event) for seen in self.seen if seen.received.kind == kind)

    def samples(self, uuid: str) -> Iterator[tuple[int, GpuSample]]:
        """Readings of one GPU, and when they arrived."""
        for seen, telemetry in self.events("telemetry"):
            for sample in telemetry.gpus:
                if sample.gpu == uuid:
                    yield seen.time_ns, sample

    def stays(self) -> tuple[Stay, ...]:
        """Every attempt that ran, by its begin."""
        ends = {(event.job, event.attempt): seen.time_ns for seen, event in self.events("runs.exited")}
        return tuple(
            Stay(
                job=event.job,
                attempt=event.attempt,
                gpu=event.gpu,
                pid=event.pid,
                purpose=event.purpose.value,
                from_ns=seen.time_ns,
                to_ns=ends.get((event.job, event.attempt)),
            )
            for seen, event in self.events("runs.started")
        )

    def profiles(self) -> dict[tuple[str, str], OfflineProfile]:
        """Newest profile by key and kind of GPU."""
        return {(event.key, event.gpu_kind): event for _, event in self.events("profiles.offline")}

    def offline_pids(self, uuid: str) -> frozenset[int]:
        """Processes that did offline work on a GPU."""
        by_hand = self.by_hand.get(self.gpus[uuid].index)
        jobs = (stay.pid for stay in self.stays() if stay.gpu == uuid)
        return frozenset((*jobs, *((by_hand,) if by_hand is not None else ())))
