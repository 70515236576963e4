"""One program that is kept running: started, watched, started again after a growing pause."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Final

import msgspec

from muxflow.bus.embedded import greets
from muxflow.supervisor import loopback_http
from muxflow.supervisor.journal import complaint
from muxflow.supervisor.reports import Ended, Report, Restarting, Started

FIRST_DELAY_S: Final = 0.2
LONGEST_DELAY_S: Final = 10.0
SETTLED_S: Final = 30.0
"""A program that ran this long is not in a crash loop: its next pause is the first one again."""

_COMMAND_S: Final = 5.0

_FROM_OUTSIDE: Final = tuple(-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""Return codes of programs that somebody killed: their log does not say why."""

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Readiness(StrEnum):
    """How to learn that a program works."""

    HTTP = "http"
    """It answers 200 on ``/readyz`` of its port."""
    NATS = "nats"
    """It greets as NATS servers do."""
    MPS = "mps"
    """It listens on its Unix socket for packets, as MPS control daemons do."""


class StopCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A command that asks a program to stop."""

    argv: tuple[str, ...]
    stdin: str


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, and how."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = {}
    """Added to the supervisor's own environment."""
    port: int = 0
    """Where it listens. Changes at a restart when somebody else has taken it, if `port_variable` is set."""
    port_variable: str | None = None
    """Environment variable that tells the program its port; null when its configuration does."""
    socket: Path | None = None
    """The Unix socket where it listens instead."""
    readiness: Readiness = Readiness.HTTP
    log: Path
    """Standard output and error go here."""
    stop_command: StopCommand | None = None
    """Run first, in the program's environment; the signal follows for one that does not obey."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_patience_s: float | None = 10.0
    """How long it may take to stop before it is killed; null waits until it is hurried."""


def next_delay_s(previous_s: float, ran_s: float) -> float:
    """How long to wait before the next start, after a program has run for `ran_s`; `previous_s` is 0 at first."""
    if ran_s >= SETTLED_S or previous_s == 0:
        return FIRST_DELAY_S
    return min(2 * previous_s, LONGEST_DELAY_S)


def free_port(preferred: int = 0) -> int:
    """Find a port on loopback that nobody listens on, `preferred` if possible."""
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


class Keeper:
    """Keeps one program running until told to stop."""

    def __init__(self, program: Program, report: Callable[[Report], None]) -> None:
        self.program = program
        self.starts = 0
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._hurried = asyncio.Event()
        self._restarting = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the program for the first time, and keep it running from then on. OSError if it cannot be started."""
        process = await self._spawn()
        self._task = asyncio.create_task(self._keep(process), name=f"keep {self.program.name}")

    async def ready(self) -> str | None:
        """Why the program does not work at present, or None."""
        if self.pid is None:
            return "not running"
        return await _probe(self.program)

    async def stop(self) -> None:
        """Send the stop signal, wait, kill when patience ends."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def restart(self, reason: str) -> None:
        """End the program, which is to be started again at once."""
        process = self._process
        if process is None or process.returncode is not None:
            return  # it is being started again
        self._restarting = True
        self._report(Restarting(name=self.program.name, reason=reason))
        _signal(process, self.program.stop_signal)
        if not await _first(process.wait(), self._stopping.wait(), timeout_s=self.program.stop_patience_s):
            _signal(process, signal.SIGKILL)

    def hurry(self) -> None:
        """Wait no longer: ask with SIGTERM, kill two seconds later."""
        self._hurried.set()

    async def _keep(self, process: asyncio.subprocess.Process | None) -> None:
        delay_s = 0.0
        while True:
            began_s = time.monotonic()
            if process is not None and not await _first(process.wait(), self._stopping.wait()):
                await self._stop(process)
                return
            if self._restarting:
                self._restarting = False
            else:
                delay_s = next_delay_s(delay_s, time.monotonic() - began_s)
                how = _describe(process.returncode or 0) if process is not None else "could not be started"
                words = "" if process and process.returncode in _FROM_OUTSIDE else complaint(self.program.log)
                self._report(Ended(name=self.program.name, how=how, last_words=words, restart_in_s=delay_s))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay_s)
                    return
            try:
                process = await self._spawn()
            except OSError:
                process = None

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        if (command := self.program.stop_command) and await _obeys(process, command, self.program.env):
            return
        _signal(process, self.program.stop_signal)
        if await _first(process.wait(), self._hurried.wait(), timeout_s=self.program.stop_patience_s):
            return
        if self._hurried.is_set():
            _signal(process, signal.SIGTERM)
            if await _first(process.wait(), asyncio.sleep(2)):
                return
        _signal(process, signal.SIGKILL)
        await process.wait()

    async def _spawn(self) -> asyncio.subprocess.Process:
        program = self.program
        env = {**os.environ, **program.env}
        if variable := program.port_variable:
            program = self.program = msgspec.structs.replace(program, port=free_port(program.port))
            env[variable] = str(program.port)
        with program.log.open("ab") as log:
            process = self._process = await asyncio.create_subprocess_exec(
                *program.argv,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
                preexec_fn=_end_with(os.getpid()),
            )
        self.starts += 1
        self._report(Started(name=program.name, pid=process.pid, port=program.port, starts=self.starts))
        return process


async def _first(one: Awaitable[object], other: Awaitable[object], *, timeout_s: float | None = None) -> bool:
    """Wait for either; says whether the first one is done."""
    tasks = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    done = tasks[0].done()
    for task in tasks:
        task.cancel()
    return done


async def _obeys(process: asyncio.subprocess.Process, command: StopCommand, env: Mapping[str, str]) -> bool:
    """Ask a program to stop; whether it did in time."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_COMMAND_S):
            asking = await asyncio.create_subprocess_exec(
                *command.argv,
                env={**os.environ, **env},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                await asking.communicate(command.stdin.encode())
                await process.wait()
            finally:
                if asking.returncode is None:
                    asking.kill()
                    await asking.wait()
    return process.returncode is not None


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _end_with(supervisor: int) -> Callable[[], None]:
    """Have the kernel end the child when the supervisor ends, however that happens; runs in the child before exec."""

    def tie() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(1)

    return tie


def _describe(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


async def _probe(program: Program) -> str | None:
    if program.readiness is Readiness.MPS:
        return None if program.socket and await _listens(program.socket) else f"does not listen on {program.socket} yet"
    silent = f"does not answer on port {program.port} yet"
    if program.readiness is Readiness.NATS:
        return None if await greets("127.0.0.1", program.port) else silent
    try:
        status, body = await loopback_http.get(program.port, "/readyz")
    except OSError:
        return silent
    return None if status == HTTPStatus.OK else body or "not ready"


async def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as asking:
        try:
            await asyncio.get_running_loop().sock_connect(asking, str(path))
        except OSError:
            return False
    return True
