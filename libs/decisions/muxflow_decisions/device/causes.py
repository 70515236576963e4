"""Why a device changed its state, in words for people: which reading crossed which threshold, with the numbers."""

from __future__ import annotations

from typing import Final

from muxflow.contracts import DeviceCondition
from muxflow_decisions.device.limits import Latch, Level, Limit, holding
from muxflow_decisions.device.memory import DeviceMemory
from muxflow_decisions.device.policy import DevicePolicy
from muxflow_decisions.device.stimuli import Disable, Enable, Fault, Lost, MonitorStarted, Read, Stimulus
from muxflow_decisions.device.table import Effect, Guard, Row

CAUSE_BYTES: Final = 150
"""Bound on a cause in UTF-8: the device page holds no more."""
_SECOND_NS: Final = 1_000_000_000


def cause_of(stimulus: Stimulus, row: Row, memory: DeviceMemory, policy: DevicePolicy) -> str:
    """Say why this row of the table was followed. `memory` has the facts and not yet the new state."""
    match stimulus:
        case Read():
            text = _read(row.guard, memory, policy)
        case Fault():
            text = fault(stimulus)
        case Lost():
            text = lost(stimulus)
        case Disable():
            text = "disabled by an operator" + (f": {stimulus.reason}" if stimulus.reason else "")
        case Enable():
            text = "enabled by an operator" + ("; the GPU is lost" if memory.lost else "")
        case MonitorStarted() if row.next is DeviceCondition.DISABLED:
            text = memory.cause
        case _:
            text = "a monitor has started; the readings are not known yet"
    if row.state is DeviceCondition.DISABLED and row.effect is Effect.HARDEN:
        text = f"{memory.cause}; {text}"  # it stays the operator's wish
    return cut(text)


def fault(stimulus: Fault) -> str:
    """Name a fault."""
    number = f" {stimulus.xid}" if stimulus.xid is not None else ""
    return f"fault: {stimulus.kind}{number}" + (f", {stimulus.message}" if stimulus.message else "")


def lost(stimulus: Lost) -> str:
    """Say that a GPU is gone."""
    return "the GPU does not answer" + (f": {stimulus.message}" if stimulus.message else "")


def cut(text: str) -> str:
    """Shorten a cause to its bound, without half a character at the end."""
    data = text.encode()
    if len(data) <= CAUSE_BYTES:
        return text
    return data[: CAUSE_BYTES - len("…".encode())].decode(errors="ignore") + "…"


def _read(guard: Guard, memory: DeviceMemory, policy: DevicePolicy) -> str:
    match guard:
        case Guard.HARD | Guard.SOFT_HARD:
            level = Level.HARD
        case Guard.OVERLIMIT:
            level = Level.OVERLIMIT
        case Guard.UNHEALTHY:
            level = Level.UNHEALTHY
        case _:
            return f"calm for {memory.calm_needed_ns(policy) / _SECOND_NS:.1f} s"
    return "; ".join(_lasting(limit, latch, policy) for limit, latch in holding(memory.latches, level))


def _lasting(limit: Limit, latch: Latch, policy: DevicePolicy) -> str:
    if not limit.after_s(policy):
        return latch.words
    return f"{latch.words} for {(latch.seen_ns - latch.beyond_ns) / _SECOND_NS:.1f} s"
