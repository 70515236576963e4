"""One device: its state, its gate, and how much of it offline work gets.

    outcome = advance(memory, stimulus, now_ns=now, policy=DevicePolicy())

The caller keeps `outcome.memory` and carries out `outcome.instructions` in their order.
"""

from __future__ import annotations

from muxflow_decisions.device.attribution import online_activity_pct
from muxflow_decisions.device.gate import FROZEN, Gate, GateState, JobPhase, combine
from muxflow_decisions.device.instructions import Alert, Instruction, SetGate, Tell
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

__all__ = [
    "FROZEN",
    "Alert",
    "DevicePolicy",
    "Disable",
    "Enable",
    "Fault",
    "Gate",
    "GateState",
    "Instruction",
    "JobPhase",
    "Lost",
    "MonitorStarted",
    "Read",
    "Readings",
    "Restored",
    "SetGate",
    "Stimulus",
    "Tell",
    "combine",
    "online_activity_pct",
]
