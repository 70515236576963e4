"""The device page: what the monitor says of a GPU, and what everyone else sees of it."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final, Self

import msgspec

from muxflow.contracts import DeviceCondition
from muxflow.contracts.event import Bytes, Count, Permille
from muxflow_decisions.device.gate import FROZEN, Gate
from muxflow_device.native.library import library
from muxflow_device.pages import word
from muxflow_device.pages.errors import PageError
from muxflow_device.pages.file import READ_ONLY, WrittenPage, create
from muxflow_device.pages.layout import CAUSE_BYTES, PageKind, RawDevicePage, RawLook, RawReadings
from muxflow_device.rundir import DeviceDirectory

_CONDITIONS: Final = (
    DeviceCondition.INIT,
    DeviceCondition.HEALTHY,
    DeviceCondition.UNHEALTHY,
    DeviceCondition.OVERLIMIT,
    DeviceCondition.DISABLED,
)
"""In the order of `enum mux_device_condition`."""

_UNKNOWN: Final = -1
_OPTIONAL: Final = (
    "sm_activity_permille",
    "utilization_permille",
    "online_activity_permille",
    "offline_busy_permille",
    "sm_clock_mhz",
    "memory_used_bytes",
    "memory_total_bytes",
    "offline_memory_bytes",
)


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the monitor says beside the gate. What a GPU cannot give is None, never 0."""

    time_boottime_ns: int
    """When the readings were taken, by CLOCK_BOOTTIME."""
    condition: DeviceCondition
    since_boottime_ns: int
    """When the condition was entered."""
    hard: bool = False
    """Overlimit or Disabled of the kind in which nothing trickles."""
    epoch: int = 0
    """Number of the condition's change, modulo 2³⁰."""
    cause: str = ""
    """Which reading crossed which threshold; 159 bytes of UTF-8, the rest is cut off."""
    sm_activity_permille: Permille | None = None
    utilization_permille: Permille | None = None
    online_activity_permille: Permille | None = None
    offline_busy_permille: Permille | None = None
    sm_clock_mhz: Count | None = None
    memory_used_bytes: Bytes | None = None
    memory_total_bytes: Bytes | None = None
    offline_memory_bytes: Bytes | None = None


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader sees of a GPU, by the rule for readers: in doubt it is frozen."""

    gate: Gate
    """What holds now: FROZEN when the page is missing, wrong or stale."""
    epoch: int
    """Of the gate word, modulo 2³⁰."""
    fresh: bool
    """Whether a monitor is alive and writes this page."""
    uuid: str
    """The GPU's, as the page says; empty when there is no page."""
    report: DeviceReport | None
    """The monitor's last word, also when it is stale; None when it cannot be read."""
    problem: str | None = None
    """Why the page is not to be used, or its report not to be had."""

    @property
    def condition(self) -> DeviceCondition | None:
        """The state of the device as the monitor last said; None when that is not known."""
        return self.report.condition if self.report else None


class DevicePageWriter:
    """The monitor's hold on one device page.

    Opening it freezes the gate, as a new monitor knows nothing yet, but keeps the page, its heartbeat and its epoch.
    One thread at a time; `beat` is for the sampling thread itself.
    """

    def __init__(
        self, directory: DeviceDirectory, *, uuid: str, stale_after_ms: int, beacon_holdoff_us: int = 0
    ) -> None:
        """Take the page over, or make it. Raises PageInUseError when another monitor has it, PageError, OSError."""
        directory.create()
        create(directory.device_page, RawDevicePage(), kind=PageKind.DEVICE, uuid=uuid, mode=READ_ONLY, owner=None)
        self._library = library()
        self._page = WrittenPage(directory.device_page, PageKind.DEVICE, RawDevicePage)
        self._gate = self._page.address("gate")
        self._start = self._gate - RawDevicePage.gate.offset
        self.epoch_before = word.unpack(self._page.content.gate)[1]
        """Epoch of the last gate that was stored before."""
        self.store_gate(FROZEN, epoch=self.epoch_before)
        self._library.mux_store32(self._page.address("stale_after_ms"), stale_after_ms)
        self._library.mux_store32(self._page.address("beacon_holdoff_us"), beacon_holdoff_us)

    def store_gate(self, gate: Gate, *, epoch: int) -> None:
        """Let a gate hold from now on. Raises PageLostError, ValueError."""
        self._page.check()
        self._library.mux_store64(self._gate, word.pack(gate, epoch))

    def beat(self) -> None:
        """Say that the monitor is alive. Raises PageLostError."""
        self._page.check()
        self._library.mux_beat(self._start)

    def write(self, report: DeviceReport) -> None:
        """Replace the report. Raises PageLostError."""
        self._page.check()
        self._library.mux_readings_write(self._start, ctypes.byref(_raw(report)))

    def close(self) -> None:
        """Leave the page; its gate holds until the heartbeat has stood still for its time."""
        self._page.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DevicePage:
    """A reader's view of one device page, which need not be there yet.

    Keep it: what it has seen of the heartbeat is how it knows a live monitor from a dead one. A monitor in another
    time namespace, whose clock says nothing to us, is taken for alive when the heartbeat has moved between two looks.
    """

    def __init__(self, directory: DeviceDirectory) -> None:
        self._library = library()
        self._reader: int | None = self._library.mux_reader_new(os.fsencode(directory.path))
        if self._reader is None:
            raise MemoryError

    def look(self) -> DeviceView:
        """See what holds now, in a few microseconds; one thread at a time. Raises ValueError after `close`."""
        if self._reader is None:
            raise ValueError("this view of a device page is closed")
        look = RawLook()
        self._library.mux_reader_look(self._reader, ctypes.byref(look))
        gate, epoch = word.unpack(look.gate)
        try:
            report, problem = _report(look), None
        except PageError as error:
            report, problem = None, str(error)
        return DeviceView(
            gate=gate if look.fresh else FROZEN,
            epoch=epoch,
            fresh=bool(look.fresh),
            uuid=look.uuid.decode(errors="replace"),
            report=report,
            problem=problem,
        )

    def close(self) -> None:
        """Let the page go."""
        reader, self._reader = self._reader, None
        self._library.mux_reader_free(reader)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _raw(report: DeviceReport) -> RawReadings:
    optional = {name: _UNKNOWN if (value := getattr(report, name)) is None else value for name in _OPTIONAL}
    return RawReadings(
        time_boottime_ns=report.time_boottime_ns,
        since_boottime_ns=report.since_boottime_ns,
        condition=_CONDITIONS.index(report.condition),
        hard=report.hard,
        epoch=report.epoch % word.EPOCHS,
        cause=report.cause.encode()[: CAUSE_BYTES - 1].decode(errors="ignore").encode(),
        **optional,
    )


def _report(look: RawLook) -> DeviceReport:
    """Take a report off the page. Raises PageError when there is none."""
    if look.error:
        raise PageError(f"device page: {_explain(look.error)}")
    if not look.whole:
        raise PageError("device page: its writer ended in the middle of a report")
    raw = look.readings
    if not raw.time_boottime_ns:
        raise PageError("device page: its monitor has read nothing yet")
    if raw.condition >= len(_CONDITIONS):
        raise PageError(f"device page: there is no condition {raw.condition}")
    optional = {name: value if (value := getattr(raw, name)) >= 0 else None for name in _OPTIONAL}
    return DeviceReport(
        time_boottime_ns=raw.time_boottime_ns,
        since_boottime_ns=raw.since_boottime_ns,
        condition=_CONDITIONS[raw.condition],
        hard=bool(raw.hard),
        epoch=raw.epoch,
        cause=raw.cause.decode(errors="replace"),
        **optional,
    )


def _explain(error: int) -> str:
    known = {
        errno.ENOENT: "not there; is the monitor of this node running, with the same run directory?",
        errno.ENODATA: "truncated",
        errno.EBADMSG: "not a device page",
        errno.EPROTONOSUPPORT: "of another version; restart what is older",
    }
    return known.get(error, os.strerror(error))
