"""Offline programs as people start them by hand beside a service: plain MPS clients, which nobody limits or stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from typing import Final

from muxflow_run.load import LoadError
from muxflow_run.plan import LARGE, MEDIUM, Gpu, Plan, Size, command

ENDLESS: Final = 10**7
_START_S: Final = 20.0
_STOP_S: Final = 10.0


def size_on(gpu: Gpu) -> Size:
    """Both sizes that use a GPU as much as they can, in turns."""
    return (MEDIUM, LARGE)[gpu.index % 2]


class ByHand:
    """One offline program on each GPU."""

    def __init__(self, plan: Plan, environments: Mapping[int, Mapping[str, str]]) -> None:
        self._plan = plan
        self._environments = environments
        self._processes: dict[int, asyncio.subprocess.Process] = {}

    @property
    def pids(self) -> dict[int, int]:
        """Process id by index of the GPU."""
        return {index: process.pid for index, process in self._processes.items()}

    async def start(self) -> None:
        """Start them, and wait until each is on its GPU. Raises `LoadError`."""
        await asyncio.gather(*(self._start(gpu) for gpu in self._plan.gpus))

    async def _start(self, gpu: Gpu) -> None:
        process = await asyncio.create_subprocess_exec(
            *(*command(size_on(gpu), batches=ENDLESS), "--save-every", "0", "--report-s", "0"),
            env=bare(self._environments[gpu.index]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._processes[gpu.index] = process
        assert process.stdout is not None  # noqa: S101 - it was asked for above
        line = await asyncio.wait_for(process.stdout.readline(), _START_S)
        if not line.startswith(b"{"):
            raise LoadError(f"the offline program on {gpu.name} does not start: {line.decode(errors='replace')}")

    async def stop(self) -> None:
        """End them. Under MPS that hurts whoever is still on the same GPU: the services have ended before."""
        for process in self._processes.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                await asyncio.wait_for(process.communicate(), _STOP_S)
            except TimeoutError:
                process.kill()
                await process.communicate()


def bare(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what makes a program one of MuxFlow's: what is preloaded, and where its pages are."""
    return {
        name: value for name, value in environment.items() if name != "LD_PRELOAD" and not name.startswith("XCUDA_")
    }
