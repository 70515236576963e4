"""One GPU's thread: it looks, lets the device machine decide, and writes the page, whatever the event loop does.

The heartbeat is advanced here and nowhere else, after each look that came to an end: a driver that hangs, a thread that
died and a process that is stopped all look alike to offline gates, and freeze them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from muxflow.contracts import DeviceAlert, DeviceFault, DeviceState, Event, Gpu, GpuSample
from muxflow_decisions.device import (
    Alert,
    DevicePolicy,
    Fault,
    Gate,
    GateState,
    Lost,
    MonitorStarted,
    Read,
    Readings,
    Restored,
    SetGate,
    Stimulus,
    Tell,
)
from muxflow_decisions.device.machine import advance
from muxflow_decisions.device.memory import DeviceMemory
from muxflow_decisions.device.recovery import recovery
from muxflow_device.attribution.processes import Crowd
from muxflow_device.faults import Reach, describe
from muxflow_device.nvml import VERSION_MISMATCH, Nvml, NvmlUnavailable, Trouble
from muxflow_device.pages import DevicePageWriter, DeviceReport, PageLostError
from muxflow_device.readings.reader import GpuAway
from muxflow_device.readings.rhythm import Rhythm
from muxflow_monitor.metrics import GpuMetrics
from muxflow_monitor.observer import Observer, Sight
from muxflow_monitor.peak import Peak
from muxflow_monitor.workloads import Workload

log = structlog.get_logger()

_SECOND_NS: Final = 1_000_000_000
_AGAIN_NS: Final = _SECOND_NS
"""A GPU that does not answer is asked again each second."""
_RENEW_LOST_NS: Final = 60 * _SECOND_NS
"""One that is lost while the driver answers may need NVML to be opened anew, which holds the other GPUs' looks up."""
_SLOWED: Final = {0x8: "hardware slowdown", 0x40: "hardware thermal slowdown", 0x80: "hardware power brake"}
"""NVML's clock event reasons (nvml.h) that say that something is wrong with the board or its surroundings."""
_JOIN_S: Final = 2.0


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the thread knows of its GPU, for others to read: replaced as a whole at each look."""

    memory: DeviceMemory
    sample: GpuSample
    crowd: Crowd | None = None
    shared: bool | None = None
    peak_pct: float | None = None
    """Of the online activity of the last ten minutes."""
    time_ns: int = 0
    """When it was taken, by CLOCK_MONOTONIC."""


class _Declare(msgspec.Struct, frozen=True):
    workload: Workload | None


class _Xid(msgspec.Struct, frozen=True):
    number: int


_Inbox = Stimulus | _Declare | _Xid


class DeviceWatch:
    """One GPU under watch, from `start` to `close`."""

    def __init__(
        self,
        gpu: Gpu,
        *,
        node: str,
        nvml: Nvml,
        observer: Observer,
        page: Callable[[], DevicePageWriter],
        rhythm: Rhythm,
        policy: DevicePolicy,
        memory: DeviceMemory | None,
        metrics: GpuMetrics,
        tell: Callable[[Event], None],
        on_found: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """`page` opens the device page, which freezes the gate; the other callables are called from the thread."""
        self.gpu = gpu
        self._node = node
        self._nvml = nvml
        self._observer = observer
        self._open_page = page
        self._page = page()
        self._rhythm = rhythm
        self._policy = policy
        self._metrics = metrics
        self._tell = tell
        self._on_found = on_found
        self._on_failure = on_failure
        self._memory = memory or DeviceMemory(epoch=self._page.epoch_before)
        self._peak = Peak()
        self._inbox: queue.SimpleQueue[_Inbox | None] = queue.SimpleQueue()
        self._away: Trouble | None = None
        self._ask_again_ns = 0
        self._renewed_ns = time.monotonic_ns()
        self._failing: frozenset[str] = frozenset()
        self._slowed = 0
        self.beat_ns = 0
        """When the heartbeat was last advanced, by CLOCK_MONOTONIC."""
        self.view = View(memory=self._memory, sample=GpuSample(gpu=gpu.uuid, state=self._memory.condition))
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

    def close(self) -> None:
        """Stop looking. The gate stays as it is, and closes when the heartbeat has stood still for its time."""
        self._inbox.put(None)
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
                self._metrics.looked((time.monotonic_ns() - began_ns) / _SECOND_NS)
                due_ns = self._rhythm.after(time.monotonic_ns())
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
        if self._away is None or now_ns >= self._ask_again_ns:
            try:
                sight = self._observer.look()
            except GpuAway as away:
                self._lose(away, now_ns)
            else:
                self._find()
                self._take(sight)
        self._written(DevicePageWriter.beat)
        self.beat_ns = time.monotonic_ns()

    def _take(self, sight: Sight) -> None:
        readings = sight.readings
        if readings.online_activity_pct is not None:
            self._peak.take(readings.now_ns, readings.online_activity_pct)
        self._note_failures()
        self._note_slowdown(readings.throttle_reasons or 0)
        self._advance(Read(readings=readings), sight)

    def _advance(self, stimulus: Stimulus, sight: Sight | None = None) -> None:
        """Let the machine decide, and do as it says: the gate first, then the words."""
        outcome = advance(self._memory, stimulus, now_ns=time.monotonic_ns(), policy=self._policy)
        self._memory = outcome.memory
        for instruction in outcome.instructions:
            if isinstance(instruction, SetGate):
                self._store_gate(instruction.gate, instruction.epoch)
        self._show(sight)
        told = [instruction for instruction in outcome.instructions if isinstance(instruction, Tell)]
        if sight is not None or told:
            self._write_report()
        for instruction in outcome.instructions:
            match instruction:
                case Tell():
                    self._tell(self._state(instruction))
                case Alert(severity=severity, message=message):
                    self._tell(self._alert(severity, message))

    def _show(self, sight: Sight | None) -> None:
        memory, before = self._memory, self.view
        gate = memory.gate
        budget = gate.budget_permille if gate.state is not GateState.FROZEN else 0
        if sight is None:
            sample = msgspec.structs.replace(before.sample, state=memory.condition, budget_permille=budget)
            self.view = msgspec.structs.replace(before, memory=memory, sample=sample)
            return
        self.view = View(
            memory=memory,
            sample=_sample(self.gpu.uuid, sight.readings, memory, budget),
            crowd=sight.crowd,
            shared=sight.shared,
            peak_pct=self._peak.pct,
            time_ns=sight.readings.now_ns,
        )

    # --- what happens to the GPU

    def _take_xid(self, number: int) -> None:
        xid = describe(number)
        shared = self.view.shared is not False
        contained = xid.contained(shared=shared)
        self._fault("xid", xid.title, xid=number, contained=contained)
        # A fault that takes all MPS clients down is over only when the offline ones have gone too.
        fatal = xid.fatal or (xid.reach is Reach.APPLICATION and self.view.shared is True)
        self._advance(Fault(kind="xid", xid=number, message=xid.title, fatal=fatal))

    def _lose(self, away: GpuAway, now_ns: int) -> None:
        """The GPU, or the whole driver, does not answer: say so once, ask again each second."""
        if self._away is None:
            log.error("the GPU does not answer", gpu=self.gpu.uuid, reason=str(away))
            kind = "lost" if away.trouble is Trouble.LOST else "nvml"
            self._fault(kind, str(away), contained=False if kind == "lost" else None)
            sample = GpuSample(gpu=self.gpu.uuid, state=self._memory.condition)
            self.view = msgspec.structs.replace(self.view, sample=sample, crowd=None, shared=None)
            self._advance(Lost(message=str(away)))
        self._away = away.trouble
        self._ask_again_ns = now_ns + _AGAIN_NS
        if away.trouble is not Trouble.LOST or now_ns - self._renewed_ns > _RENEW_LOST_NS:
            self._renew(away.opening)
            self._renewed_ns = now_ns

    def _renew(self, opening: int) -> None:
        try:
            self._nvml.renew(opening)
        except NvmlUnavailable as unavailable:
            if unavailable.code == VERSION_MISMATCH:
                raise  # only a new process loads the library of the new driver
            log.warning("NVML cannot be opened anew, trying again", reason=str(unavailable))

    def _find(self) -> None:
        if self._away is not None:
            self._away = None
            log.info("the GPU answers again", gpu=self.gpu.uuid)
            self._on_found()
            self._advance(Restored())

    def _note_failures(self) -> None:
        """Tell of calls that NVML stopped to answer, once for each time it does."""
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

    # --- the page

    def _store_gate(self, gate: Gate, epoch: int) -> None:
        self._written(lambda page: page.store_gate(gate, epoch=epoch))

    def _write_report(self) -> None:
        memory, sample = self._memory, self.view.sample
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        asleep_ns = now_ns - time.monotonic_ns()
        report = DeviceReport(
            time_boottime_ns=now_ns,
            condition=memory.condition,
            since_boottime_ns=memory.since_ns + asleep_ns,
            hard=memory.hard,
            epoch=memory.epoch,
            cause=memory.cause,
            sm_activity_permille=_permille(sample.sm_activity_pct),
            utilization_permille=_permille(sample.utilization_pct),
            online_activity_permille=_permille(sample.online_activity_pct),
            offline_busy_permille=sample.offline_busy_permille,
            sm_clock_mhz=sample.sm_clock_mhz,
            memory_used_bytes=sample.memory_used_bytes,
            memory_total_bytes=sample.memory_total_bytes,
            offline_memory_bytes=sample.offline_memory_bytes,
        )
        self._written(lambda page: page.write(report))

    def _written(self, write: Callable[[DevicePageWriter], None]) -> None:
        """Write to the page; one that was removed under us is made anew, with the gate that holds."""
        try:
            write(self._page)
        except PageLostError as error:
            log.error("the device page is made anew", reason=str(error))  # noqa: TRY400 - the reason says it all
            self._page.close()
            self._page = self._open_page()
            self._page.store_gate(self._memory.gate, epoch=self._memory.epoch)
            self._page.beat()

    def _alert(self, severity: str, message: str) -> DeviceAlert:
        return DeviceAlert(
            node=self._node, gpu=self.gpu.uuid, severity=severity, message=message, time_ns=time.time_ns()
        )

    def _state(self, tell: Tell) -> DeviceState:
        entered_ns = time.time_ns() - (time.monotonic_ns() - tell.since_ns)
        return DeviceState(
            node=self._node,
            gpu=self.gpu.uuid,
            state=tell.state,
            previous=tell.previous,
            since_ns=max(0, entered_ns),
            cause=tell.cause,
            recovery=recovery(self._memory, self._policy),
            epoch=tell.epoch,
            budget_permille=self.view.sample.budget_permille,
            sample=self.view.sample,
            time_ns=time.time_ns(),
        )


def _sample(gpu: str, readings: Readings, memory: DeviceMemory, budget_permille: int) -> GpuSample:
    return GpuSample(
        gpu=gpu,
        state=memory.condition,
        utilization_pct=readings.utilization_pct,
        sm_activity_pct=readings.sm_activity_pct,
        sm_occupancy_pct=readings.sm_occupancy_pct,
        memory_bandwidth_pct=readings.memory_bandwidth_pct,
        memory_used_bytes=readings.memory_used_bytes,
        memory_total_bytes=readings.memory_total_bytes,
        offline_memory_bytes=readings.offline_memory_bytes,
        sm_clock_mhz=readings.sm_clock_mhz,
        throttle_reasons=readings.throttle_reasons,
        power_w=readings.power_w,
        temperature_c=readings.temperature_c,
        online_activity_pct=readings.online_activity_pct,
        offline_busy_permille=readings.offline_busy_permille,
        budget_permille=budget_permille,
    )


def _permille(percent: float | None) -> int | None:
    return round(10 * percent) if percent is not None else None
