"""The device page in the hands of its GPU's thread: gate, report and heartbeat, over a loss of the file."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from muxflow.contracts import GpuSample
from muxflow_decisions.device import FROZEN, Gate
from muxflow_decisions.device.memory import DeviceMemory
from muxflow_device.pages import DevicePageWriter, DeviceReport, PageLostError

log = structlog.get_logger()


class Page:
    """One page. One that is removed or truncated under us is made anew, with the gate that holds."""

    def __init__(self, make: Callable[[], DevicePageWriter]) -> None:
        """`make` opens the page, which freezes the gate, or makes it."""
        self._make = make
        self._writer = make()
        self._gate = FROZEN
        self._epoch = self._writer.epoch_before

    @property
    def epoch(self) -> int:
        """Of the gate that was stored last, by an earlier monitor if not by this one."""
        return self._epoch

    def store_gate(self, gate: Gate, epoch: int) -> None:
        """Let a gate hold from now on."""
        self._gate, self._epoch = gate, epoch
        self._write(lambda writer: writer.store_gate(gate, epoch=epoch))

    def report(self, memory: DeviceMemory, sample: GpuSample) -> None:
        """Say how the device is, beside its gate."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        report = DeviceReport(
            time_boottime_ns=now_ns,
            condition=memory.condition,
            since_boottime_ns=memory.since_ns + now_ns - time.monotonic_ns(),
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
        self._write(lambda writer: writer.write(report))

    def beat(self) -> None:
        """Advance the heartbeat."""
        self._write(DevicePageWriter.beat)

    def close(self) -> None:
        """Leave the page; its gate holds until the heartbeat has stood still for its time."""
        self._writer.close()

    def _write(self, write: Callable[[DevicePageWriter], None]) -> None:
        try:
            write(self._writer)
        except PageLostError as error:
            log.error("the device page is made anew", reason=str(error))  # noqa: TRY400 - the reason says it all
            self._writer.close()
            self._writer = self._make()
            self._writer.store_gate(self._gate, epoch=self._epoch)


def _permille(percent: float | None) -> int | None:
    return round(10 * percent) if percent is not None else None
