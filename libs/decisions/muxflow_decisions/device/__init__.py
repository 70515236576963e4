"""One device: its state, its gate, and how much of it offline work gets.

    outcome = advance(memory, stimulus, now_ns=now, policy=DevicePolicy())

The caller keeps `outcome.memory` and carries out `outcome.instructions` in their order.
"""

from __future__ import annotations

from muxflow_decisions.device.attribution import online_activity_pct
from muxflow_decisions.device.gate import FROZEN, Gate, GateState, JobPhase, combine
from muxflow_decisions.device.instructions import Alert, Instruction, SetGate, Tell
from muxflow_decisions.device.invariants import InvalidMemory, validate
from muxflow_decisions.device.machine import advance, gate_of
from muxflow_decisions.device.memory import DeviceMemory, Outcome
from muxflow_decisions.device.policy import DevicePolicy
from muxflow_decisions.device.readings import Readings
from muxflow_decisions.device.stimuli import (
    Disable,
    Enable,
    Fault,
    Lost,
    MonitorStarted,
    Read,
    Restored,
    Stimulus,
)
from muxflow_decisions.device.story import story

__all__ = [
    "FROZEN",
    "Alert",
    "DeviceMemory",
    "DevicePolicy",
    "Disable",
    "Enable",
    "Fault",
    "Gate",
    "GateState",
    "Instruction",
    "InvalidMemory",
    "JobPhase",
    "Lost",
    "MonitorStarted",
    "Outcome",
    "Read",
    "Readings",
    "Restored",
    "SetGate",
    "Stimulus",
    "Tell",
    "advance",
    "combine",
    "gate_of",
    "online_activity_pct",
    "story",
    "validate",
]
