"""One GPU's thread: it looks, lets the device machine decide, and writes the page, whatever the event loop does.

The heartbeat is advanced here and nowhere else, after each look that came to an end: a driver that hangs, a thread that
died and a process that is stopped all look alike to offline gates, and freeze them.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from muxflow.contracts import DeviceAlert, DeviceFault, DeviceState, Event, Gpu, GpuSample
from muxflow_decisions.device import (
    Alert,
    DevicePolicy,
    Fault,
    Lost,
    MonitorStarted,
    Read,
    Restored,
    SetGate,
    Stimulus,
    Tell,
)
from muxflow_decisions.device.machine import advance
from muxflow_decisions.device.memory import DeviceMemory
from muxflow_decisions.device.recovery import recovery
from muxflow_device.attribution.jobs import OfflineJob
from muxflow_device.attribution.processes import Crowd
from muxflow_device.faults import Reach, describe
from muxflow_device.nvml import VERSION_MISMATCH, Nvml, NvmlUnavailable, Trouble
from muxflow_device.readings.reader import GpuAway
from muxflow_device.readings.rhythm import Rhythm
from muxflow_monitor.conduct import Conduct
from muxflow_monitor.metrics import GpuMetrics
from muxflow_monitor.observer import Observer, Sight
from muxflow_monitor.page import Page
from muxflow_monitor.peak import Peak
from muxflow_monitor.samples import blank, sample_of
from muxflow_monitor.workloads import Workload

log = structlog.get_logger()

_SECOND_NS: Final = 1_000_000_000
_CLOUD_NS: Final = 2 * _SECOND_NS
"""For how long the driver's meters, which look back a second, may show what has ended."""
_AGAIN_NS: Final = _SECOND_NS
"""A GPU that does not answer is asked again each second."""
_RENEW_LOST_NS: Final = 60 * _SECOND_NS
"""One that is lost while the driver answers may need NVML to be opened anew, which holds the other GPUs' looks up."""
_XID_EVERY_NS: Final = 10 * _SECOND_NS
"""A driver may report the same XID hundreds of times a second: each counts, and people are told this often."""
_SLOWED: Final = {0x8: "hardware slowdown", 0x40: "hardware thermal slowdown", 0x80: "hardware power brake"}
"""NVML's clock event reasons (nvml.h) that say that something is wrong with the board or its surroundings."""
_JOIN_S: Final = 2.0
_ENDED_MAX: Final = 64
"""Attempts whose last words wait to be told: more than end within a second."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the thread knows of its GPU, for others to read: replaced as a whole at each look."""

    memory: DeviceMemory
    sample: GpuSample
    crowd: Crowd | None = None
    shared: bool | None = None
    """Whether the GPU has MPS clients."""
    jobs: tuple[OfflineJob, ...] = ()
    """Attempts on the GPU."""
    peak_pct: float | None = None
    """Of the online activity of the last ten minutes."""
    uncovered_peak_pct: float | None = None
    """The same of the time in which not every online process carried the beacon."""
    time_ns: int = 0
    """When the sample was taken, by CLOCK_MONOTONIC; 0: there is none yet."""


class _Declare(msgspec.Struct, frozen=True):
    workload: Workload | None


class _Xid(msgspec.Struct, frozen=True):
    number: int


_Item = Stimulus | _Declare | _Xid


class DeviceWatch:
    """One GPU under watch, from `start` to `close`."""

    def __init__(
        self,
        gpu: Gpu,
        *,
        node: str,
        nvml: Nvml,
        observer: Observer,
        page: Page,
        conduct: Conduct,
        rhythm: Rhythm,
        policy: DevicePolicy,
        tell_again_s: float,
        memory: DeviceMemory | None,
        metrics: GpuMetrics,
        tell: Callable[[Event], None],
        on_found: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """A state that lasts is told again every `tell_again_s`. `memory` is an earlier monitor's, of the same boot.

        The callables are called from the thread.
        """
        self.gpu = gpu
        self._node = node
        self._nvml = nvml
        self._observer = observer
        self._page = page
        self._conduct = conduct
        self._rhythm = rhythm
        self._policy = policy
        self._metrics = metrics
        self._tell = tell
        self._on_found = on_found
        self._on_failure = on_failure
        self._tell_again_ns = int(tell_again_s * _SECOND_NS)
        self._told: DeviceState | None = None
        self._told_ns = 0
        self._repeats = 0
        self._memory = memory or DeviceMemory()
        if self._memory.epoch < page.epoch:  # killed before its last change was kept: no number is given twice
            self._memory = msgspec.structs.replace(self._memory, epoch=page.epoch)
        self._peak = Peak()
        self._uncovered = Peak()
        self._clouded_until_ns = 0
        self._ended: deque[OfflineJob] = deque(maxlen=_ENDED_MAX)
        self._inbox: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._away = False
        self._ask_again_ns = 0
        self._renewed_ns = time.monotonic_ns()
        self._failing: frozenset[str] = frozenset()
        self._slowed = 0
        self._xids: dict[int, int] = {}
        """When each XID was last told."""
        self._complaint = ""
        self.beat_ns = 0
        """When the heartbeat was last advanced, by CLOCK_MONOTONIC."""
        self.view = View(memory=self._memory, sample=blank(gpu.uuid, self._memory))
        self._thread = threading.Thread(target=self._run, name=f"gpu-{gpu.index}", daemon=True)

    def start(self, *stimuli: Stimulus) -> None:
        """Begin to watch; the stimuli come before the first look."""
        for stimulus in (MonitorStarted(), *stimuli):
            self._inbox.put(stimulus)
        self._thread.start()

    def send(self, stimulus: Stimulus) -> None:
        """Tell the machine what has happened, at once."""
        self._inbox.put(stimulus)

    def declare(self, workload: Workload | None) -> None:
        """Say which online workload the GPU has."""
        self._inbox.put(_Declare(workload))

    def report_xid(self, number: int) -> None:
        """Say that the driver has reported an XID."""
        self._inbox.put(_Xid(number))

    def take_ended(self) -> tuple[OfflineJob, ...]:
        """Give the attempts that have gone since the last call, with what was seen of them last."""
        return tuple(self._ended.popleft() for _ in range(len(self._ended)))

    def close(self) -> None:
        """Stop looking. The gate stays as it is, and closes when the heartbeat has stood still for its time."""
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
        if not self._thread.is_alive():  # else it hangs in the driver, and ends with the process
            self._observer.close()
            self._page.close()

    # --- the thread

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the service must end with it
            self._on_failure(error)

    def _watch(self) -> None:
        due_ns = self._rhythm.after(time.monotonic_ns())
        while True:
            try:
                item = self._inbox.get(timeout=max(0.0, (due_ns - time.monotonic_ns()) / _SECOND_NS))
            except queue.Empty:
                began_ns = time.monotonic_ns()
                if missed := self._rhythm.missed(due_ns, began_ns):
                    self._metrics.missed(missed)
                self._look(began_ns)
                ended_ns = time.monotonic_ns()
                self._metrics.looked((ended_ns - began_ns) / _SECOND_NS)
                due_ns = self._rhythm.after(ended_ns)
                continue
            match item:
                case None:
                    return
                case _Declare(workload=workload):
                    self._observer.declare(workload)
                case _Xid(number=number):
                    self._take_xid(number)
                case stimulus:
                    self._advance(stimulus)

    def _look(self, now_ns: int) -> None:
        """Look and decide; the heartbeat says that both came to an end."""
        if self._away and now_ns < self._ask_again_ns:
            self._page.report(self._memory, self.view.sample)
        else:
            try:
                sight = self._observer.look()
            except GpuAway as away:
                self._lose(away, now_ns)
            else:
                self._find()
                self._take(sight)
        self._page.beat()
        self.beat_ns = time.monotonic_ns()
        if self._told is not None and self.beat_ns - self._told_ns >= self._tell_again_ns:
            self._repeat(self._told)

    def _take(self, sight: Sight) -> None:
        readings = sight.readings
        there = {job.name for job in sight.jobs}
        self._ended.extend(job for job in self.view.jobs if job.name not in there)
        clouded = self._is_clouded(sight)  # what a job does unheld would be forecast as the online side's
        if readings.online_activity_pct is not None and not clouded:
            self._peak.take(readings.now_ns, readings.online_activity_pct)
            uncovered_pct = 0.0 if readings.online_beacons else readings.online_activity_pct
            self._uncovered.take(readings.now_ns, uncovered_pct)
        self._note_failures()
        if readings.throttle_reasons is not None:
            self._note_slowdown(readings.throttle_reasons)
        self._advance(Read(readings=readings), sight)
        self._conduct.take(sight.conduct, now_ns=readings.now_ns)

    def _is_clouded(self, sight: Sight) -> bool:
        """Whether a process of a job that nothing holds is, or just was, part of what the device's meters show."""
        now_ns = sight.readings.now_ns
        if any(not resident.held for job in sight.conduct for resident in job.residents):
            if now_ns >= self._clouded_until_ns:  # it was on the GPU before the driver listed it
                self._peak.forget_newest()
                self._uncovered.forget_newest()
            self._clouded_until_ns = now_ns + _CLOUD_NS
        return now_ns < self._clouded_until_ns

    def _advance(self, stimulus: Stimulus, sight: Sight | None = None, *, alerts: bool = True) -> None:
        """Let the machine decide, and do as it says: the gate first, then the words."""
        outcome = advance(self._memory, stimulus, now_ns=time.monotonic_ns(), policy=self._policy)
        self._memory = outcome.memory
        for instruction in outcome.instructions:
            if isinstance(instruction, SetGate):
                self._page.store_gate(instruction.gate, instruction.epoch)
        self._show(sight)
        if sight is not None or outcome.instructions:
            self._page.report(self._memory, self.view.sample)
        for instruction in outcome.instructions:
            match instruction:
                case Tell():
                    self._told, self._told_ns, self._repeats = self._state(instruction), time.monotonic_ns(), 0
                    self._tell(self._told)
                case Alert() if alerts:
                    self._tell(self._alert(instruction))

    def _show(self, sight: Sight | None) -> None:
        memory, before = self._memory, self.view
        if sight is None:
            sample = msgspec.structs.replace(
                before.sample, state=memory.condition, budget_permille=memory.gate.budget_permille
            )
            self.view = msgspec.structs.replace(before, memory=memory, sample=sample)
            return
        self.view = View(
            memory=memory,
            sample=sample_of(self.gpu.uuid, sight.readings, memory),
            crowd=sight.crowd,
            shared=sight.shared,
            jobs=sight.jobs,
            peak_pct=self._peak.pct,
            uncovered_peak_pct=self._uncovered.pct,
            time_ns=sight.readings.now_ns,
        )

    # --- what happens to the GPU

    def _take_xid(self, number: int) -> None:
        xid = describe(number)
        shared = self.view.shared
        now_ns = time.monotonic_ns()
        news = now_ns - self._xids.get(number, -_XID_EVERY_NS) >= _XID_EVERY_NS
        if news:
            self._xids[number] = now_ns
            self._fault("xid", xid.title, xid=number, contained=xid.contained(shared=shared is not False))
        else:
            self._metrics.fault("xid")
        # A fault that takes all MPS clients down is over only when the offline ones have gone too.
        fatal = xid.fatal or (xid.reach is Reach.APPLICATION and shared is True)
        self._advance(Fault(kind="xid", xid=number, message=xid.title, fatal=fatal), alerts=news)

    def _lose(self, away: GpuAway, now_ns: int) -> None:
        """The GPU, or the whole driver, does not answer: say so once, ask again each second."""
        lost = away.trouble in (Trouble.LOST, Trouble.NOTHING)  # by the second a driver says that there is no such GPU
        if not self._away:
            self._away = True
            log.error("the GPU does not answer", gpu=self.gpu.uuid, reason=str(away))
            self._fault("lost" if lost else "nvml", str(away), contained=False if lost else None)
            self.view = View(
                memory=self._memory,
                sample=blank(self.gpu.uuid, self._memory),
                peak_pct=self._peak.pct,
                uncovered_peak_pct=self._uncovered.pct,
            )
            self._advance(Lost(message=str(away)))
        self._ask_again_ns = now_ns + _AGAIN_NS
        if away.trouble is Trouble.DRIVER or now_ns - self._renewed_ns > _RENEW_LOST_NS:
            self._renewed_ns = now_ns
            self._renew(away.opening)

    def _renew(self, opening: int) -> None:
        try:
            self._nvml.renew(opening)
        except NvmlUnavailable as unavailable:
            if unavailable.code == VERSION_MISMATCH:
                raise  # only a new process loads the library of the new driver
            if str(unavailable) != self._complaint:
                self._complaint = str(unavailable)
                log.warning("NVML cannot be opened anew, trying again", reason=self._complaint)

    def _find(self) -> None:
        if self._away:
            self._away = False
            self._complaint = ""
            log.info("the GPU answers again", gpu=self.gpu.uuid)
            self._on_found()
            self._advance(Restored())

    def _note_failures(self) -> None:
        """Tell of calls that NVML has stopped to answer, once for each time it does."""
        if self._observer.failing == self._failing:
            return
        if new := self._observer.failing - self._failing:
            self._fault("nvml", f"no answer to {', '.join(sorted(new))}", contained=True)
        self._failing = frozenset(self._observer.failing)

    def _note_slowdown(self, reasons: int) -> None:
        slowed = reasons & sum(_SLOWED)
        if new := slowed & ~self._slowed:
            self._fault("clock", ", ".join(text for bit, text in _SLOWED.items() if new & bit), contained=True)
        self._slowed = slowed

    # --- events

    def _repeat(self, told: DeviceState) -> None:
        """Tell a state that lasts once more, before the bus has forgotten it. By this thread, so that it never comes
        after a newer one. It has the epoch of the change, and an id of its own.
        """
        self._told_ns = time.monotonic_ns()
        self._repeats += 1
        self._tell(
            msgspec.structs.replace(
                told,
                id=f"{told.id}.again.{self._repeats}",
                recovery=recovery(self._memory, self._policy),
                budget_permille=self.view.sample.budget_permille,
                sample=self.view.sample,
                time_ns=time.time_ns(),
            )
        )

    def _fault(self, kind: str, message: str, *, xid: int | None = None, contained: bool | None) -> None:
        self._metrics.fault(kind)
        self._tell(
            DeviceFault(
                node=self._node,
                gpu=self.gpu.uuid,
                kind=kind,
                xid=xid,
                message=message,
                contained=contained,
                time_ns=time.time_ns(),
            )
        )

    def _alert(self, alert: Alert) -> DeviceAlert:
        return DeviceAlert(
            node=self._node,
            gpu=self.gpu.uuid,
            severity=alert.severity,
            message=alert.message,
            time_ns=time.time_ns(),
        )

    def _state(self, tell: Tell) -> DeviceState:
        now_ns = time.time_ns()
        return DeviceState(
            id=uuid.uuid4().hex,
            node=self._node,
            gpu=self.gpu.uuid,
            state=tell.state,
            previous=tell.previous,
            since_ns=max(0, now_ns - (time.monotonic_ns() - tell.since_ns)),
            cause=tell.cause,
            recovery=recovery(self._memory, self._policy),
            epoch=tell.epoch,
            budget_permille=self.view.sample.budget_permille,
            sample=self.view.sample,
            time_ns=now_ns,
        )
