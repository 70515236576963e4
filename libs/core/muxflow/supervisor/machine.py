"""One machine: the server and the services, kept running until a signal ends them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from muxflow.bus.embedded import ServerError
from muxflow.contracts import Role
from muxflow.inventory import describe
from muxflow.service import SUPERVISOR_VARIABLE
from muxflow.settings import CONFIG_VARIABLE
from muxflow.supervisor import journal, mps, server, storage
from muxflow.supervisor.installation import Installation, Plan, blame, gpus_of, install
from muxflow.supervisor.processes import Keeper, Program
from muxflow.supervisor.reports import Ready, Report, Stopped, Stopping, Stuck, Waiting
from muxflow.supervisor.services import SERVICES, ServiceEntry
from muxflow.supervisor.state import StateDirectory

STARTS_TO_GIVE_UP: Final = 4
"""A program that ended this often before everything was ready once will not work: say so and stop."""

_LOOK_S: Final = 0.05
_TELL_AFTER_S: Final = 5.0
_WATCH_S: Final = 1.0
_UNSTICK_EVERY_S: Final = 10.0


class SupervisorError(Exception):
    """The machine does not start. The message is one line that says why."""


class Machine:
    """One run of `muxflow up`."""

    def __init__(self, plan: Plan, report: Callable[[Report], None]) -> None:
        self._plan = plan
        self._report = report
        self._state = StateDirectory(plan.state_dir)
        self._keepers: list[Keeper] = []
        """The server, MPS, then the services, in the order of their start."""
        self._stopping = asyncio.Event()
        self._stuck = ""
        self._unstuck_s = -_UNSTICK_EVERY_S

    async def run(self) -> None:
        """Start everything, keep it running, stop it in order after SIGINT or SIGTERM.

        Raises `SupervisorError`, `StateError`, `ServerError`, `MpsError`, OSError, and what `gpus_of` and `install`
        raise.
        """
        began_s = time.monotonic()
        with self._state.open_locked(), self._signals(), gpus_of(self._plan, self._state) as present:
            installation = install(self._plan, self._state, present)
            try:
                await self._start(installation)
                if await self._until_ready():
                    self._report(self._ready(installation, time.monotonic() - began_s))
                    await self._watch(installation)
            finally:
                await self._stop()
                self._report(Stopped())

    async def _start(self, installation: Installation) -> None:
        """Start the server, put the streams into it, start MPS and the services."""
        await self._keep(server.program(self._state, installation.port))
        if not await self._until_ready():
            return
        await self._make_streams(installation)
        present = installation.present
        for gpu in present.watched:
            await self._keep(mps.program(gpu, present, self._state.log(mps.name(gpu))))
        services = [entry for entry in SERVICES if present.watched or not entry.watches]
        for entry in services:
            await self._keep(self._program(entry, installation))
        ports = {keeper.program.name: keeper.program.port for keeper in self._keepers}
        self._state.write_connection(installation.connection({entry.name: ports[entry.name] for entry in services}))

    async def _stop(self) -> None:
        """Stop what runs in the opposite order: services one by one, all MPS daemons at once, the server."""
        daemons = [keeper for keeper in self._keepers if keeper.program.stop_command]
        for keeper in reversed(self._keepers[1:]):
            if keeper not in daemons:
                await keeper.stop()
        await asyncio.gather(*(keeper.stop() for keeper in daemons))
        for keeper in self._keepers[:1]:
            await keeper.stop()

    def _program(self, entry: ServiceEntry, installation: Installation) -> Program:
        mine = next(each for each in installation.credentials if each.role is entry.role)
        return Program(
            name=entry.name,
            argv=(sys.executable, "-m", entry.module),
            env={
                **(installation.present.env if entry.role is Role.NODE else {}),
                CONFIG_VARIABLE: str(self._state.settings),
                SUPERVISOR_VARIABLE: str(os.getpid()),
                "MUXFLOW_BUS__SERVERS": json.dumps([installation.url]),
                "MUXFLOW_BUS__CREDENTIALS": str(self._state.root / mine.path),
                "MUXFLOW_BUS__INBOX_PREFIX": mine.inbox_prefix,
            },
            port=installation.http_ports.get(entry.name, 0),
            port_variable="MUXFLOW_HTTP__PORT",
            log=self._state.log(entry.name),
            stop_signal=entry.stop_signal,
            stop_patience_s=entry.stop_patience_s,
        )

    async def _keep(self, program: Program) -> None:
        keeper = Keeper(program, self._report)
        self._keepers.append(keeper)
        await keeper.start()

    async def _until_ready(self) -> bool:
        """Wait until everything started so far works; False if told to stop before."""
        told_s = time.monotonic()
        while not self._stopping.is_set():
            reasons = {keeper.program.name: why for keeper in self._keepers if (why := await keeper.ready())}
            if not reasons:
                return True
            self._give_up_on_crash_loops()
            if time.monotonic() - told_s > _TELL_AFTER_S:
                told_s = time.monotonic()
                self._report(Waiting(reasons=reasons))
            await self._pause(_LOOK_S)
        return False

    def _give_up_on_crash_loops(self) -> None:
        for keeper in self._keepers:
            if keeper.starts >= STARTS_TO_GIVE_UP:
                name, log = keeper.program.name, keeper.program.log
                words = server.last_words(log) if name == server.NAME else journal.last_words(log)
                words = blame(words, self._plan, self._state)
                raise SupervisorError(f"{name} does not start: {words} (log: {log})")

    async def _watch(self, installation: Installation) -> None:
        """Keep logs bounded and the server storing; after its restart, put back the streams it keeps in memory only."""
        the_server = self._keepers[0]
        starts = the_server.starts
        while not self._stopping.is_set():
            for keeper in self._keepers:
                journal.bound(keeper.program.log)
            if the_server.starts != starts and await the_server.ready() is None:
                starts = the_server.starts
                try:
                    await self._make_streams(installation)
                except ServerError as error:
                    self._report(Waiting(reasons={server.NAME: str(error)}))
            await self._unstick(installation)
            await self._pause(_WATCH_S)

    async def _unstick(self, installation: Installation) -> None:
        """Restart a server that a full disk has stopped, when there is room again."""
        if not (reason := await server.stuck(installation.monitor_port)):
            self._stuck = ""
            return
        if reason != self._stuck:
            self._stuck = reason
            self._report(Stuck(name=server.NAME, reason=f"{reason}, nothing is stored ({self._state.store})"))
        if time.monotonic() - self._unstuck_s > _UNSTICK_EVERY_S and storage.has_room(self._state.store):
            self._unstuck_s = time.monotonic()
            await self._keepers[0].restart("there is room on the disk again")

    async def _make_streams(self, installation: Installation) -> None:
        await server.make_streams(
            self._state, installation.url, installation.credentials, installation.lease, installation.store
        )

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first SIGINT or SIGTERM stop the machine in order, and the second hurry it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _signalled(self, number: signal.Signals) -> None:
        self._report(Stopping(signal=number.name, hurried=self._stopping.is_set()))
        if self._stopping.is_set():
            for keeper in self._keepers:
                keeper.hurry()
        self._stopping.set()

    def _ready(self, installation: Installation, seconds: float) -> Ready:
        return Ready(
            seconds=round(seconds, 3),
            state_dir=str(self._state.root),
            server=installation.url,
            node=installation.node,
            gpus=describe(installation.present.gpus),
            watched=bool(installation.present.watched),
            pids={keeper.program.name: keeper.pid or 0 for keeper in self._keepers},
            ports={keeper.program.name: keeper.program.port for keeper in self._keepers if keeper.program.port},
            logs=str(self._state.logs),
        )
