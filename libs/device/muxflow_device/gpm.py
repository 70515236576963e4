"""GPU Performance Monitoring: how much of the SMs and of the memory bandwidth is in use (NVML, Hopper and later).

NVML keeps no meters of its own here: two samples, more than 100 ms apart, give the mean between them. A few are kept in
turn, so that ten looks a second give ten values a second, each over the last 0.1 to 0.2 s.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from typing import Any, Final

import msgspec

_APART_NS: Final = 100_000_000
"""Samples that are not further apart give no metrics (nvml.h, `nvmlGpmMetricsGet`)."""
_EVERY_NS: Final = 45_000_000
_KEPT: Final = 4
"""Taken 45 ms or more apart, one of three is always old enough, and there is one to spare."""


class GpmMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Means over an interval of CLOCK_MONOTONIC, in percent; null for what this GPU does not give."""

    begin_ns: int
    end_ns: int
    sm_activity_pct: float | None
    sm_occupancy_pct: float | None
    memory_bandwidth_pct: float | None


class Gpm:
    """The metrics of one GPU whose handle stays valid. Its calls raise `pynvml.NVMLError`."""

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self._pynvml = pynvml
        self._handle = handle
        self._taken: deque[tuple[int, Any]] = deque()
        self._spare = [pynvml.nvmlGpmSampleAlloc() for _ in range(_KEPT)]
        self._latest: GpmMetrics | None = None
        self._wanted = (
            pynvml.NVML_GPM_METRIC_SM_UTIL,
            pynvml.NVML_GPM_METRIC_SM_OCCUPANCY,
            pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
        )
        self._question = pynvml.c_nvmlGpmMetricsGet_t()
        self._question.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._question.numMetrics = len(self._wanted)
        for metric, wanted in zip(self._question.metrics, self._wanted, strict=False):
            metric.metricId = wanted

    @staticmethod
    def supported(pynvml: Any, handle: Any) -> bool:
        """Ask the driver. Raises `pynvml.NVMLError`."""
        return bool(pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)

    def look(self, now_ns: int) -> GpmMetrics | None:
        """Take a sample, if the last one is old enough; returns the newest metrics, null until there can be some."""
        if self._taken and now_ns - self._taken[-1][0] < _EVERY_NS:
            return self._latest
        sample = self._spare.pop()
        try:
            self._pynvml.nvmlGpmSampleGet(self._handle, sample)
        except BaseException:
            self._spare.append(sample)
            raise
        before = next((taken for taken in reversed(self._taken) if now_ns - taken[0] > _APART_NS), None)
        if before is not None:
            begin_ns, first = before
            self._latest = self._between(begin_ns, first, now_ns, sample)
        self._taken.append((now_ns, sample))
        if not self._spare:
            self._spare.append(self._taken.popleft()[1])
        return self._latest

    def close(self) -> None:
        """Give the samples back."""
        for sample in (*self._spare, *(sample for _, sample in self._taken)):
            with contextlib.suppress(self._pynvml.NVMLError):
                self._pynvml.nvmlGpmSampleFree(sample)
        self._spare.clear()
        self._taken.clear()

    def _between(self, begin_ns: int, first: Any, end_ns: int, second: Any) -> GpmMetrics:
        question = self._question
        question.sample1 = first
        question.sample2 = second
        self._pynvml.nvmlGpmMetricsGet(question)
        sm, occupancy, bandwidth = (_percent(question.metrics[index]) for index in range(len(self._wanted)))
        return GpmMetrics(
            begin_ns=begin_ns,
            end_ns=end_ns,
            sm_activity_pct=sm,
            sm_occupancy_pct=occupancy,
            memory_bandwidth_pct=bandwidth,
        )


def _percent(metric: Any) -> float | None:
    value = float(metric.value)
    if metric.nvmlReturn != 0 or not math.isfinite(value):
        return None
    return min(100.0, max(0.0, value))
