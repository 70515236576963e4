"""What simulated devices did, from their own logs, folded while the phase runs: they remember 65,536 operations."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from muxflow_run.load import Window
from muxflow_run.plan import Plan
from muxflow_simgpu import SimulatedMachine
from muxflow_simgpu.figures import Tally

DIRECTORY: Final = "MUXFLOW_SIMGPU"
_EVERY_S: Final = 1.0


class DeviceLog:
    """Follows the logs of all devices of a machine from now on."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self._machine = SimulatedMachine(directory)
        self._indices = [gpu.index for gpu in plan.gpus]
        self._read = {index: self._machine.device(index).operations for index in self._indices}
        self.tallies: dict[int, Tally] = {}
        self.kernels: dict[int, list[tuple[int, int]]] = {}
        """Of each online process, launch and end of every kernel."""

    def begin(self, window: Window, online: frozenset[int]) -> None:
        """Forget what was before: a window begins."""
        self.tallies = {index: Tally(window.begin_ns) for index in self._indices}
        self.kernels = {pid: [] for pid in online}

    async def follow(self) -> None:
        """Read until cancelled."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(_EVERY_S)

    def look(self) -> None:
        """Fold what has ended since."""
        for index in self._indices:
            operations = self._machine.operations(index, after=self._read[index])
            if operations:
                self._read[index] = operations[-1].number
            if index in self.tallies:
                self.tallies[index].take(operations)
                for each in operations:
                    if each.pid in self.kernels and each.started_ns is not None:
                        self.kernels[each.pid].append((each.enqueued_ns, each.ended_ns))
