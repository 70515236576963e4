"""How the run is now, for whoever shows it; kept up to date by what services and the bus tell."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

import msgspec

from muxflow.contracts import GpuSample
from muxflow_run.plan import Gpu, Plan
from muxflow_run.recorder import Seen

RECENT: Final = 6


class Row(msgspec.Struct, kw_only=True):
    """One GPU."""

    gpu: Gpu
    p50_ms: float | None = None
    p99_ms: float | None = None
    """Of the last second of the service there."""
    lost: int = 0
    job: str | None = None
    state: str | None = None
    sample: GpuSample | None = None


class Board:
    """What there is to show."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.phase = ""
        self.step = ""
        self.rows = {gpu.index: Row(gpu=gpu) for gpu in plan.gpus}
        self.events: deque[str] = deque(maxlen=RECENT)
        self.told = 0
        """Events so far; the newest are in `events`."""
        self.waiting: set[str] = set()
        self.done: set[str] = set()
        self._began_s = time.monotonic()
        self._until_s: float | None = None
        self._uuids: dict[str, int] = {}

    @property
    def passed_s(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began_s

    @property
    def left_s(self) -> float | None:
        """Until the present step is over; None when that is not known."""
        return None if self._until_s is None else max(0.0, self._until_s - time.monotonic())

    def enter(self, phase: str, step: str, *, seconds: float | None = None) -> None:
        """Say what goes on now, and for how long."""
        if phase != self.phase:
            for row in self.rows.values():
                row.p50_ms = row.p99_ms = row.job = row.state = row.sample = None
                row.lost = 0
        self.phase, self.step = phase, step
        self._until_s = None if seconds is None else time.monotonic() + seconds
        self.tell(step)

    def tell(self, words: str) -> None:
        """Add a line about what happened."""
        self.events.append(f"{self.passed_s:6.1f} s  {self.phase:<11}  {words}")
        self.told += 1

    def know(self, uuids: dict[str, int]) -> None:
        """Learn which GPU has which UUID."""
        self._uuids = uuids

    def put(self, index: int, job: str | None) -> None:
        """An offline program is on a GPU that the bus does not tell of."""
        self.rows[index].job = job

    def second(self, service: str, said: dict[str, Any]) -> None:
        """Take in what a service said of its last second."""
        for row in self.rows.values():
            if row.gpu.service is not None and row.gpu.service.name == service:
                row.p50_ms, row.p99_ms = said["p50_ms"], said["p99_ms"]
                row.lost += said["lost"]
                if said["lost"]:
                    self.tell(f"{service} lost {said['lost']} requests")

    def hear(self, seen: Seen) -> None:
        """Take in an event."""
        kind, event = seen.received.kind, seen.received.event
        if kind == "telemetry":
            for sample in event.gpus:
                self._read(sample)
        elif kind == "devices.state":
            self._change(event)
        elif kind.startswith("jobs."):
            self._job(kind.partition(".")[2], seen.received.names["job"])
        elif kind.startswith("runs."):
            self._run(kind.partition(".")[2], event)
        elif kind == "alerts.eviction" and event.total_ms is None:
            self.tell(f"{event.job} is evicted from {self._name(event.gpu)}: {event.cause}")
        elif kind == "profiles.offline" and (event.confident or event.failure):
            what = event.failure or f"{event.launches_per_s or 0:.0f} launches/s"
            self.tell(f"{event.key.rpartition('/')[2]} is measured alone on {event.gpu_kind}: {what}")

    def _read(self, sample: GpuSample) -> None:
        if (index := self._uuids.get(sample.gpu)) is not None:
            row = self.rows[index]
            row.sample = sample
            row.state = sample.state.value if sample.state else row.state

    def _change(self, event: Any) -> None:
        if (index := self._uuids.get(event.gpu)) is None:
            return
        self.rows[index].state = event.state.value
        if event.previous is not None and event.state is not event.previous:
            self.tell(f"{self._name(event.gpu)} is {event.state.value}: {event.cause or 'calm again'}")

    def _job(self, verb: str, job: str) -> None:
        if verb == "accepted":
            self.waiting.add(job)
        elif verb in ("finished", "failed", "cancelled"):
            self.waiting.discard(job)
            self.done.add(job)
            if verb != "cancelled":
                self.tell(f"{job} has {verb}")

    def _run(self, verb: str, event: Any) -> None:
        if (index := self._uuids.get(event.gpu)) is None:
            return
        if verb == "started":
            self.waiting.discard(event.job)
            self.rows[index].job = event.job
            purpose = "" if event.purpose.value == "run" else f" to {event.purpose.value}"
            self.tell(f"{event.job} runs on {self._name(event.gpu)}{purpose}")
        elif verb == "exited":
            if self.rows[index].job == event.job:
                self.rows[index].job = None
            if event.exit.stopped_by is not None and event.job not in self.done:
                self.waiting.add(event.job)

    def _name(self, uuid: str) -> str:
        index = self._uuids.get(uuid)
        return uuid if index is None else self.rows[index].gpu.name
