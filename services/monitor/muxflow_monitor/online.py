"""Which online workload is on each GPU, as it is told: when it changes, and when its peak has moved."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from muxflow.contracts import OnlineState
from muxflow_device.attribution.processes import Process, Side
from muxflow_monitor.watch import View
from muxflow_monitor.workloads import Workload

_PEAK_EVERY_NS: Final = 10_000_000_000
_PEAK_STEP_PCT: Final = 5.0
"""A peak that moves by less is nobody's news."""
_PIDS_MAX: Final = 64
UNDECLARED: Final = "undeclared:"
"""Before the name of the program that uses the GPU and belongs to nobody that is known."""


class _Told(msgspec.Struct, frozen=True):
    state: OnlineState
    peak_at_ns: int


class OnlineStates:
    """What was last told of each GPU of a node."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._told: dict[str, _Told] = {}

    def changed(self, gpu: str, workload: Workload | None, view: View, *, now_ns: int) -> OnlineState | None:
        """Give what is to be published of a GPU now, if it is anything new. `now_ns` is CLOCK_MONOTONIC."""
        if view.time_ns == 0:
            return None  # nothing has been seen yet
        before = self._told.get(gpu)
        state = self._state(gpu, workload, view, before.state if before else None)
        if before is not None and not _is_news(before, state, now_ns):
            return None
        self._told[gpu] = _Told(state, now_ns)
        return state

    def _state(self, gpu: str, workload: Workload | None, view: View, before: OnlineState | None) -> OnlineState:
        name, processes = _who(workload, view)
        same = before is not None and before.workload == name
        return OnlineState(
            node=self._node,
            gpu=gpu,
            workload=name,
            latency_target_ms=workload.latency_target_ms if workload is not None and name == workload.name else None,
            pids=tuple(process.pid for process in processes)[:_PIDS_MAX],
            since_ns=before.since_ns if before is not None and same else time.time_ns(),
            activity_peak_pct=_rounded(view.peak_pct),
            uncovered_peak_pct=_rounded(view.uncovered_peak_pct),
        )


def _rounded(pct: float | None) -> float | None:
    return round(pct, 1) if pct is not None else None


def _who(workload: Workload | None, view: View) -> tuple[str | None, tuple[Process, ...]]:
    """Name the workload and its processes. A declared one counts as there where nobody can tell who is."""
    if view.crowd is None:
        return (workload.name if workload is not None else None), ()
    declared = view.crowd.on(Side.ONLINE)
    if declared and workload is not None:
        return workload.name, declared
    unknown = view.crowd.on(Side.UNKNOWN)
    return (f"{UNDECLARED}{unknown[0].name}", unknown) if unknown else (None, ())


def _is_news(before: _Told, state: OnlineState, now_ns: int) -> bool:
    told = before.state
    if (told.workload, told.latency_target_ms, told.pids) != (state.workload, state.latency_target_ms, state.pids):
        return True
    peaks = (
        (told.activity_peak_pct, state.activity_peak_pct),
        (told.uncovered_peak_pct, state.uncovered_peak_pct),
    )
    if any((old is None) != (new is None) for old, new in peaks):
        return True
    moved_pct = max(abs((new or 0.0) - (old or 0.0)) for old, new in peaks)
    return moved_pct >= _PEAK_STEP_PCT and now_ns - before.peak_at_ns >= _PEAK_EVERY_NS
