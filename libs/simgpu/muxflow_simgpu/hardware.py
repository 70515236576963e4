"""Simulated GPUs for `muxflow up --simulate`, which finds this by entry point: `muxflow` imports no other room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muxflow_simgpu.machine import SimulatedMachine


def simulate(directory: Path, kinds: Sequence[str]) -> dict[str, str]:
    """Make the devices of a directory anew, and give what programs need in their environment to see them.

    Raises `SimulationError` and `NotBuiltError`.
    """
    machine = SimulatedMachine(directory)
    machine.stop()
    machine.start(*kinds)
    return machine.environment()
