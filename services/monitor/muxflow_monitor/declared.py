"""The online workloads of this node, as they are declared now, and what they say of themselves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from muxflow.contracts import Gpu, OnlineAlert, SloReport
from muxflow_monitor.reports import SloReports
from muxflow_monitor.settings import OnlineWorkload
from muxflow_monitor.workloads import Workload, WorkloadFile, placed


class Declared:
    """By GPU: from the settings, and from the file beside them, which is read again when it changes."""

    def __init__(self, settings: Mapping[str, OnlineWorkload], file: Path, *, node: str) -> None:
        self._settings = settings
        self._file = WorkloadFile(file)
        self._node = node
        self._reports = SloReports(node)
        self._gpus: tuple[Gpu, ...] = ()
        self._by_gpu: dict[str, Workload] = {}

    def read(self, gpus: Iterable[Gpu]) -> None:
        """Read everything for these GPUs. Raises `DeclarationError`."""
        self._gpus = tuple(gpus)
        self._file.changed()
        self._by_gpu = placed({**self._settings, **self._file.read()}, self._gpus)

    def changed(self) -> bool:
        """Look whether the file has changed, and read it if so. Raises `DeclarationError`; then all stays as it was."""
        if not self._file.changed():
            return False
        self._by_gpu = placed({**self._settings, **self._file.read()}, self._gpus)
        return True

    def of(self, gpu: str) -> Workload | None:
        """Give the workload of a GPU."""
        return self._by_gpu.get(gpu)

    def take(self, report: SloReport) -> OnlineAlert | None:
        """Note a report, if it is on a workload of this node; gives the alert that it is worth."""
        workload = next((found for found in self._by_gpu.values() if found.name == report.workload), None)
        if workload is None or report.node not in (None, self._node) or report.gpu not in (None, workload.gpu):
            return None
        return self._reports.take(
            report, gpu=workload.gpu, target_ms=workload.latency_target_ms, now_s=time.monotonic()
        )

    def slo_ratio(self, workload: str) -> float | None:
        """Give a workload's latency over its target, null when that is not known. For any thread."""
        return self._reports.ratio(workload, time.monotonic())
