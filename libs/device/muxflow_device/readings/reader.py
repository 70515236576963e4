"""Asks one GPU what it can tell, and goes on asking whatever happens to it.

What the GPU or its driver never gives is found out by asking once, and not asked again. Memory and the activity meters
are read at each look; clocks, power, temperature and processes change slowly, cost most, and are read at every fifth.
How busy each process was is asked only when it is needed to tell two sides apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from muxflow_device.gpm import Gpm, GpmMetrics
from muxflow_device.nvml import Nvml, Trouble, meaning
from muxflow_device.readings.look import GpuProcess, Look, Share
from muxflow_device.readings.question import Question

SLOW_EVERY: Final = 5
"""Looks from one reading of what changes slowly to the next."""
_US_NS: Final = 1_000
_SECOND_NS: Final = 1_000_000_000
_PERIOD_MAX_NS: Final = _SECOND_NS
"""The longest sample period that NVML documents for its utilization meters."""
_STALE_NS: Final = 3 * _PERIOD_MAX_NS
"""A utilization that ended before this says nothing of now."""
_RECENT_US: Final = 1_100_000
"""The newest sample of a process is at most one period old; a little more for the way."""


class GpuAway(Exception):  # noqa: N818 - it reads as what is told
    """The GPU, or the driver as a whole, does not answer. `opening` is the one of NVML that was tried."""

    def __init__(self, trouble: Trouble, message: str, code: int, opening: int) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.code = code
        self.opening = opening


class GpuReader:
    """One GPU, named by its UUID. Used by one thread."""

    def __init__(self, nvml: Nvml, uuid: str) -> None:
        self.uuid = uuid
        self._nvml = nvml
        self.failing: set[str] = set()
        """Names of the calls that NVML should answer, and did not the last time."""
        self._opening = -1
        self._session: _Session | None = None

    def look(self, *, by_process: bool) -> Look:
        """Take one look, and ask how busy each process was if that is wanted.

        Raises `GpuAway`; the next call begins anew.
        """
        import pynvml  # noqa: PLC0415 - see muxflow_device.nvml

        with self._nvml.using() as opening:
            try:
                if self._session is None or opening != self._opening:
                    self._session, self._opening = _Session(pynvml, self.uuid, self.failing), opening
                return self._session.look(by_process=by_process)
            except pynvml.NVMLError as error:
                self._drop(valid=opening == self._opening)
                raise GpuAway(meaning(error.value), str(error), error.value, opening) from None

    def close(self) -> None:
        """Give back what the driver holds for it."""
        with self._nvml.using() as opening:
            self._drop(valid=opening == self._opening)

    def capabilities(self) -> dict[str, bool]:
        """Tell what this GPU gives, of all that has been asked so far."""
        return {question.name: question.supported for question in self._questions() if question.supported is not None}

    def _drop(self, *, valid: bool) -> None:
        session, self._session = self._session, None
        if session is not None and valid:
            session.close()

    def _questions(self) -> tuple[Question, ...]:
        return self._session.questions if self._session is not None else ()


class _Session:
    """Questions to one handle, for as long as it is valid."""

    def __init__(self, pynvml: Any, uuid: str, failing: set[str]) -> None:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)

        def question(name: str, ask: Callable[[], Any]) -> Question:
            return Question(name, ask, failing)

        failing.clear()
        self._failing = failing
        self._error = pynvml.NVMLError
        self._gpm = _gpm(pynvml, handle)
        self._utilization = UtilizationMeter(pynvml, handle, question)
        self._memory = question("memory", lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
        self._metrics = question("gpm", self._look_at_gpm)
        self._metrics.supported = None if self._gpm is not None else False
        self._clock = question("sm_clock", lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
        self._clock_max = question(
            "sm_clock_max", lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
        )
        # The name of this call since driver 535; older ones have it as ...ThrottleReasons, with the same bits.
        self._throttle = question("throttle_reasons", lambda: _throttle_reasons(pynvml, handle))
        self._power = question("power", lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
        self._temperature = question(
            "temperature", lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
        )
        self._processes = question("processes", lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
        self._clients = question("mps_processes", lambda: pynvml.nvmlDeviceGetMPSComputeRunningProcesses(handle))
        self._activity = question(
            "process_utilization",
            lambda: pynvml.nvmlDeviceGetProcessUtilization(handle, time.time_ns() // _US_NS - _RECENT_US),
        )
        self.questions = (
            *self._utilization.questions,
            self._memory,
            self._metrics,
            self._clock,
            self._clock_max,
            self._throttle,
            self._power,
            self._temperature,
            self._processes,
            self._clients,
            self._activity,
        )
        self._looks = 0
        self._slow: dict[str, Any] = {}

    def look(self, *, by_process: bool) -> Look:
        now_ns = time.monotonic_ns()
        if self._looks % SLOW_EVERY == 0:
            self._slow = self._look_slowly()
        self._looks += 1
        memory = self._memory.ask(self._error)
        metrics: GpmMetrics | None = self._metrics.ask(self._error)
        return Look(
            time_ns=now_ns,
            utilization=self._utilization.look(now_ns),
            sm_activity=_share(metrics),
            settling=metrics is None and self._gpm is not None and self._metrics.name not in self._failing,
            sm_occupancy_pct=metrics.sm_occupancy_pct if metrics else None,
            memory_bandwidth_pct=metrics.memory_bandwidth_pct if metrics else None,
            memory_used_bytes=memory.total - memory.free if memory else None,
            memory_total_bytes=memory.total if memory else None,
            process_utilization=_by_pid(self._activity.ask(self._error, ())) if by_process else None,
            **self._slow,
        )

    def close(self) -> None:
        if self._gpm is not None:
            self._gpm.close()

    def _look_slowly(self) -> dict[str, Any]:
        error = self._error
        power_mw = self._power.ask(error)
        processes, clients = self._processes.ask(error), self._clients.ask(error)
        return {
            "sm_clock_mhz": self._clock.ask(error),
            "sm_clock_max_mhz": self._clock_max.ask(error),
            "throttle_reasons": self._throttle.ask(error),
            "power_w": power_mw / 1000 if power_mw is not None else None,
            "temperature_c": self._temperature.ask(error),
            "processes": _merged(processes, clients),
            "shared": bool(clients) if clients is not None else None,
        }

    def _look_at_gpm(self) -> GpmMetrics | None:
        return self._gpm.look(time.monotonic_ns()) if self._gpm is not None else None


class UtilizationMeter:
    """The device's utilization, with the period that it covers.

    NVML keeps a buffer of samples, each stamped with the end of its period. A driver that does not give it out gives
    the newest value alone: its period is then taken for the longest that NVML documents.

    Samples are stamped by the wall clock. When that is set back, or the driver samples no more, there is no newer one:
    then nothing is known, and the whole buffer is asked for again.
    """

    def __init__(self, pynvml: Any, handle: Any, question: Callable[[str, Callable[[], Any]], Question]) -> None:
        self._error = pynvml.NVMLError
        self._stamp_us = 0
        self._newest: Share | None = None
        self._samples = question(
            "utilization_samples",
            lambda: pynvml.nvmlDeviceGetSamples(handle, pynvml.NVML_GPU_UTILIZATION_SAMPLES, self._stamp_us)[1],
        )
        self._rates = question("utilization", lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
        self.questions = (self._samples, self._rates)

    def look(self, now_ns: int) -> Share | None:
        samples = self._samples.ask(self._error, ())
        if samples is None:
            rates = self._rates.ask(self._error)
            return Share(now_ns - _PERIOD_MAX_NS, now_ns, rates.gpu / 100) if rates else None
        if samples:
            self._newest = self._period(samples, now_ns)
        if self._newest is not None and now_ns - self._newest.end_ns > _STALE_NS:
            self._newest, self._stamp_us = None, 0
        return self._newest

    def _period(self, samples: Any, now_ns: int) -> Share:
        """Take the newest sample; it covers the time since the one before."""
        stamps_us = [self._stamp_us, *(int(sample.timeStamp) for sample in samples)]
        behind_ns = time.time_ns() - stamps_us[-1] * _US_NS
        period_ns = (stamps_us[-1] - stamps_us[-2]) * _US_NS
        if not 0 < period_ns <= _PERIOD_MAX_NS:  # the first sample of all, or the clock was set
            period_ns = _PERIOD_MAX_NS
        self._stamp_us = stamps_us[-1]
        end_ns = now_ns - max(0, behind_ns)
        return Share(end_ns - period_ns, end_ns, min(1.0, samples[-1].sampleValue.uiVal / 100))


def _gpm(pynvml: Any, handle: Any) -> Gpm | None:
    try:
        return Gpm(pynvml, handle) if Gpm.supported(pynvml, handle) else None
    except pynvml.NVMLError as error:
        if meaning(error.value) in {Trouble.LOST, Trouble.DRIVER}:
            raise
        return None


def _throttle_reasons(pynvml: Any, handle: Any) -> int:
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _share(metrics: GpmMetrics | None) -> Share | None:
    if metrics is None or metrics.sm_activity_pct is None:
        return None
    return Share(metrics.begin_ns, metrics.end_ns, metrics.sm_activity_pct / 100)


def _merged(processes: Any, clients: Any) -> tuple[GpuProcess, ...] | None:
    if processes is None and clients is None:
        return None
    found = {process.pid: process for process in (*(processes or ()), *(clients or ()))}
    return tuple(GpuProcess(pid, process.usedGpuMemory) for pid, process in sorted(found.items()))


def _by_pid(samples: Any) -> dict[int, float] | None:
    """Give the newest sample of each process."""
    if samples is None:
        return None
    newest: dict[int, Any] = {}
    for sample in samples:
        if sample.pid not in newest or newest[sample.pid].timeStamp <= sample.timeStamp:
            newest[sample.pid] = sample
    return {pid: min(1.0, sample.smUtil / 100) for pid, sample in newest.items()}
