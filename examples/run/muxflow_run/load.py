"""The online services as real processes: one instance warms a GPU up, a second one takes over for the measured window.

The measured instance is on the GPU before the window begins, and the first request of the window is due at its begin:
so every phase has the same requests at the same times, and the GPU is never without its service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from muxflow_run.plan import WORKLOADS, Gpu, Plan, Service

SECOND_NS: Final = 1_000_000_000
LEAD_S: Final = 3.0
"""From the start of the measured instances to the window: an interpreter, a context, the first request."""
_WARM_SEED: Final = 1000
_PATIENCE_S: Final = 20.0
_HOURS_S: Final = 7200.0


class LoadError(Exception):
    """An online service did not serve. The message has its last words."""


class Request(msgspec.Struct, frozen=True):
    """One request, as the service noted it. Times are CLOCK_MONOTONIC."""

    due_ns: int
    done_ns: int
    error: str | None = None

    @property
    def latency_ms(self) -> float:
        """From when it was due, so that waiting in line counts."""
        return (self.done_ns - self.due_ns) / 1e6


class Window(msgspec.Struct, frozen=True):
    """The measured part of a phase, on the clock of requests and devices, and on that of events."""

    begin_ns: int
    """CLOCK_MONOTONIC."""
    seconds: float

    @property
    def end_ns(self) -> int:
        """CLOCK_MONOTONIC."""
        return self.begin_ns + int(self.seconds * SECOND_NS)


Tell = Callable[[str, dict[str, Any]], None]
"""Takes a service's name and its line about the last second."""


class Instance:
    """One process of an online service."""

    def __init__(self, gpu: Gpu, service: Service, log: Path) -> None:
        self.gpu = gpu
        self.service = service
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._lines: asyncio.Task[None] | None = None
        self._errors: asyncio.Task[bytes] | None = None
        self._ready = asyncio.Event()
        self.ready_ns = 0

    @property
    def pid(self) -> int:
        """Its process id. It must have been started."""
        assert self._process is not None  # noqa: S101 - a promise to the type checker
        return self._process.pid

    async def start(self, env: Mapping[str, str], arguments: tuple[str, ...], tell: Tell | None = None) -> None:
        """Start it and wait until it serves. Raises `LoadError`."""
        script = str(WORKLOADS / "online_service.py")
        words = (*self.service.arguments(), *arguments, "--progress", "--log", str(self._log))
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, script, *words),
            env=dict(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stderr is not None  # noqa: S101 - it was asked for above
        self._errors = asyncio.create_task(self._process.stderr.read())
        self._lines = asyncio.create_task(self._read(self._process, tell))
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._lines}, timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not self._ready.is_set():
            await self.stop()
            raise LoadError(f"{self.service.name} does not serve on {self.gpu.name}: {await self._last_words()}")

    async def _read(self, process: asyncio.subprocess.Process, tell: Tell | None) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for above
        async for line in process.stdout:
            said = json.loads(line)
            if "ready_ns" in said:
                self.ready_ns = int(said["ready_ns"])
                self._ready.set()
            elif tell is not None and "second" in said:
                tell(self.service.name, said)

    async def finish(self, within_s: float) -> tuple[Request, ...]:
        """Wait until its load is over; gives every request. Raises `LoadError`."""
        process = self._process
        assert process is not None  # noqa: S101 - a promise to the type checker
        try:
            await asyncio.wait_for(process.wait(), within_s)
        except TimeoutError:
            raise LoadError(f"{self.service.name} does not come to an end") from None
        if process.returncode:
            raise LoadError(f"{self.service.name} ended with {process.returncode}: {await self._last_words()}")
        lines = self._log.read_bytes().splitlines()
        return tuple(msgspec.json.decode(line, type=Request) for line in lines)

    async def stop(self) -> None:
        """End it in order, whatever it does. Twice is as good as once."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), _PATIENCE_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._lines is not None:
            await self._lines

    async def _last_words(self) -> str:
        errors = (await self._errors).decode(errors="replace").strip() if self._errors else ""
        return errors.splitlines()[-1] if errors else "without a word"


class Load:
    """All online services of a machine, through one phase."""

    def __init__(self, plan: Plan, directory: Path, environments: Mapping[int, Mapping[str, str]], tell: Tell) -> None:
        self._plan = plan
        self._directory = directory
        self._environments = environments
        self._tell = tell
        self._warm: list[Instance] = []
        self._measured: list[Instance] = []
        self._stopping: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> dict[str, frozenset[int]]:
        """Process ids by service: of both instances."""
        return {
            service.name: frozenset(each.pid for each in (*self._warm, *self._measured) if each.service is service)
            for _, service in self._plan.served
        }

    async def warm_up(self) -> None:
        """Serve a load like the measured one, until `measure`. Raises `LoadError`."""
        self._warm = self._instances("warm")
        seed = self._plan.seed + _WARM_SEED
        await asyncio.gather(*(self._start(each, seed, _HOURS_S, begin_ns=0) for each in self._warm))

    async def prepare(self) -> Window:
        """Start the measured instances; gives the window, which begins when all of them have started.

        Those that were not ready in time are started again, with more of it. Raises `LoadError`.
        """
        for lead_s in (LEAD_S, 2 * LEAD_S, 4 * LEAD_S):
            window = Window(time.monotonic_ns() + int(lead_s * SECOND_NS), self._plan.window_s)
            self._measured = self._instances("measured")
            starts = (
                self._start(each, self._plan.seed, self._plan.window_s, begin_ns=window.begin_ns)
                for each in self._measured
            )
            await asyncio.gather(*starts)
            if all(each.ready_ns < window.begin_ns for each in self._measured):
                return window
            await asyncio.gather(*(each.stop() for each in self._measured))
        raise LoadError(f"online services take more than {4 * LEAD_S:g} s to start: this machine is too busy")

    async def take_over(self, window: Window) -> None:
        """Let the measured instances serve alone from the begin of the window on."""
        await asyncio.sleep((window.begin_ns - time.monotonic_ns()) / SECOND_NS)
        await asyncio.gather(*(each.stop() for each in self._warm))

    async def finish(self) -> dict[str, tuple[Request, ...]]:
        """Wait for the end of the load; gives the requests by service. Raises `LoadError`."""
        within_s = self._plan.window_s + LEAD_S + _PATIENCE_S
        found = await asyncio.gather(*(each.finish(within_s) for each in self._measured))
        return {each.service.name: requests for each, requests in zip(self._measured, found, strict=True)}

    async def stop(self) -> None:
        """End every instance."""
        await asyncio.gather(*(each.stop() for each in (*self._warm, *self._measured)))

    def _instances(self, what: str) -> list[Instance]:
        return [
            Instance(gpu, service, self._directory / f"{what}-{service.name}.jsonl")
            for gpu, service in self._plan.served
        ]

    async def _start(self, instance: Instance, seed: int, seconds: float, *, begin_ns: int) -> None:
        arguments = (
            *("--rates", str(self._directory / f"{instance.service.name}.rates")),
            *("--time-scale", str(self._plan.time_scale)),
            *("--seed", str(seed)),
            *("--seconds", str(seconds)),
            *(("--begin-ns", str(begin_ns)) if begin_ns else ()),
        )
        await instance.start(self._environments[instance.gpu.index], arguments, self._tell)
