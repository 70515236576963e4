"""The gate word: 64 bits that are stored and loaded in one piece."""

from __future__ import annotations

from typing import Final

from muxflow_decisions.device.gate import FROZEN, Gate, GateState

EPOCHS: Final = 1 << 30
"""An epoch is counted modulo this."""

_BUDGET_SHIFT: Final = 8
_WINDOW_SHIFT: Final = 18
_EPOCH_SHIFT: Final = 34


def pack(gate: Gate, epoch: int) -> int:
    """Make the word. Raises ValueError for what has no place in it."""
    if not 0 <= gate.budget_permille <= 1000:
        raise ValueError(f"a budget of {gate.budget_permille} ‰")
    if not 0 <= gate.window_us < 1 << 16:
        raise ValueError(f"a window of {gate.window_us} µs, more than the 65535 that have room")
    return (
        gate.state
        | gate.budget_permille << _BUDGET_SHIFT
        | gate.window_us << _WINDOW_SHIFT
        | epoch % EPOCHS << _EPOCH_SHIFT
    )


def unpack(word: int) -> tuple[Gate, int]:
    """Take the word apart: gate and epoch. One that makes no sense is FROZEN."""
    epoch = word >> _EPOCH_SHIFT & EPOCHS - 1
    state = word & 0xFF
    budget_permille = word >> _BUDGET_SHIFT & 0x3FF
    if state > GateState.OPEN or budget_permille > 1000:
        return FROZEN, epoch
    gate = Gate(state=GateState(state), budget_permille=budget_permille, window_us=word >> _WINDOW_SHIFT & 0xFFFF)
    return gate, epoch
