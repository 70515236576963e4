"""One `muxflow up` as a subprocess, by its public command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

from muxflow import discovery
from muxflow.supervisor import hardware

MUXFLOW: Final = str(Path(sys.executable).with_name("muxflow"))
NODE: Final = "here"
"""Name of the node: the host's own does not belong into a report."""
MARK: Final = "MUXFLOW_RUN_MARK"
"""In the environment of everything that a run starts: what is left of it can be found."""
READY_S: Final = 60.0
STOP_S: Final = 40.0


class MachineError(Exception):
    """MuxFlow does not run as it should. The message says why, in its own words."""


class Machine:
    """A machine that `muxflow up` runs; its state directory may be used again by the next one."""

    def __init__(self, state_dir: Path, arguments: tuple[str, ...], mark: str) -> None:
        self.state_dir = state_dir
        self.troubles: list[str] = []
        """Services that ended by themselves while it ran."""
        self.started_ns = 0
        """When it was started last, UTC."""
        self._arguments = arguments
        self._env = {**os.environ, MARK: mark}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._words: list[str] = []

    async def start(self) -> None:
        """Run it until it is ready. Raises `MachineError`."""
        command = (MUXFLOW, "up", "--json", "--node", NODE, "--state-dir", str(self.state_dir), *self._arguments)
        self.started_ns = time.time_ns()
        self._process = await asyncio.create_subprocess_exec(
            *command,
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours: what runs is stopped in order
        )
        self._reading = asyncio.create_task(self._read(self._process))
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._reading}, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not self._ready.is_set():
            words = "\n".join(self._words[-20:]) or "it says nothing"
            raise MachineError(f"muxflow up is not ready:\n{words}")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Take what it reports, as long as it runs."""
        assert process.stdout is not None  # noqa: S101 - it was asked for above
        async for line in process.stdout:
            self._take(line.decode(errors="replace").strip())

    def _take(self, line: str) -> None:
        try:
            report: dict[str, Any] = json.loads(line)
        except ValueError:
            self._words.append(line)
            return
        match report.get("event"):
            case "ready":
                self._ready.set()
            case "ended":
                self.troubles.append(f"{report['name']} {report['how']} {report['last_words']}".strip())
                self._words.append(self.troubles[-1])
            case "stuck" | "waiting":
                self._words.append(line)

    def environment(self, gpu: str) -> dict[str, str]:
        """What a program needs to be served on a GPU, as `muxflow device env` prints it, beside all that it has."""
        return {**self._env, **discovery.environment_on(gpu, directory=self.state_dir)}

    async def stop(self) -> None:
        """Stop it and all its jobs in order; what does not end in time is killed. Twice is as good as once."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            self.troubles.append(f"muxflow up did not stop within {STOP_S:g} s")
            process.kill()
            await process.wait()
        if self._reading is not None:
            await self._reading


def left(mark: str) -> dict[int, str]:
    """Find what still runs of a run: process ids, and what each was started with."""
    sign = f"{MARK}={mark}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid() and sign in (entry / "environ").read_bytes():
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if command:  # else it is over, and waits for its parent
                    found[int(entry.name)] = command
    return found


async def gone(mark: str, within_s: float) -> dict[int, str]:
    """Wait until nothing of a run is left; gives what there still is after that time, and kills it."""
    deadline = asyncio.get_running_loop().time() + within_s
    while found := left(mark):
        if asyncio.get_running_loop().time() > deadline:
            kill(found)
            return found
        await asyncio.sleep(0.05)
    return {}


def kill(pids: dict[int, str]) -> None:
    """Kill these processes."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def run_directory(state_dir: Path) -> Path:
    """Where the machine of a state directory keeps its pages and simulated GPUs: in shared memory."""
    return hardware.run_directory(state_dir.absolute())


def remove(root: Path, state_dirs: tuple[Path, ...]) -> list[str]:
    """Remove the files of a run; gives what was left in shared memory though everything had ended."""
    directories = [run_directory(state_dir) for state_dir in state_dirs]
    leftover = [directory.name for directory in directories if directory.exists()]
    for directory in (*directories, root):
        shutil.rmtree(directory, ignore_errors=True)
    return leftover
