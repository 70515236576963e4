"""One machine: the server, what it needs, and the services, kept running until a signal ends them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from muxflow.bus.embedded import ServerError
from muxflow.contracts import Gpu
from muxflow.discovery import ConnectionFile, Credentials
from muxflow.service import SUPERVISOR_VARIABLE
from muxflow.settings import CONFIG_VARIABLE
from muxflow.supervisor import inventory, journal, server, toml
from muxflow.supervisor.processes import Keeper, Program, free_port
from muxflow.supervisor.reports import Ready, Report, Stopped, Stopping, Waiting
from muxflow.supervisor.services import SERVICES, ServiceEntry
from muxflow.supervisor.state import StateDirectory, write_private

STARTS_TO_GIVE_UP: Final = 4
"""A program that ended this often before everything was ready once will not work: say so and stop."""

_LOOK_S: Final = 0.05
_TELL_AFTER_S: Final = 5.0
SETTINGS_HEADER: Final = "# Written by `muxflow up` at each start; --set section.key=value changes it.\n\n"


class SupervisorError(Exception):
    """The machine cannot be started. The message is one line with the fix."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants to run."""

    state_dir: Path
    node: str
    gpus: tuple[Gpu, ...] | None = None
    """None takes those of the last time."""
    port: int | None = None
    """Port of the server; None takes that of the last time, or a free one."""
    overrides: tuple[tuple[tuple[str, ...], Any], ...] = ()
    """Path and value of settings of the services, such as ``(("executor", "lease_s"), 2)``."""


class Machine:
    """One run of `muxflow up`."""

    def __init__(self, plan: Plan, report: Callable[[Report], None]) -> None:
        self._plan = plan
        self._report = report
        self._state = StateDirectory(plan.state_dir)
        self._keepers: list[Keeper] = []
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Start everything, keep it running, stop it in order after SIGINT or SIGTERM.

        Raises `SupervisorError`, `StateError`, `InventoryError`, and OSError when a file cannot be written.
        """
        began_s = time.monotonic()
        with self._state.open_locked(), self._signals():
            gpus = self._inventory()
            try:
                connection = await self._start(gpus)
                if connection is not None and await self._until_ready():
                    self._report(self._ready(connection, gpus, time.monotonic() - began_s))
                    await self._watch(connection)
            finally:
                for keeper in reversed(self._keepers):
                    await keeper.stop()
                self._report(Stopped())

    async def _start(self, gpus: tuple[Gpu, ...]) -> ConnectionFile | None:
        """Start the server, provision it, start the services; None if told to stop before."""
        plan, state = self._plan, self._state
        port = self._port()
        url = f"nats://127.0.0.1:{port}"
        settings = self._settings(url)
        credentials = server.prepare(state, node=plan.node, tenants=tuple(settings["tenants"]), port=port)
        write_private(state.settings, (SETTINGS_HEADER + toml.dump(settings)).encode())
        write_private(state.inventory, inventory.dump(gpus).encode())
        await self._keep(server.program(state, port))
        if not await self._until_ready():
            return None
        await self._make_streams(url, credentials)
        for entry in SERVICES:
            await self._keep(self._program(entry, credentials))
        ports = {keeper.program.name: keeper.program.port for keeper in self._keepers[1:]}
        connection = ConnectionFile(server=url, node=plan.node, credentials=credentials, http_ports=ports)
        state.write_connection(connection)
        return connection

    def _inventory(self) -> tuple[Gpu, ...]:
        if self._plan.gpus is not None:
            return self._plan.gpus
        if self._state.inventory.exists():
            return inventory.load(self._state.inventory)
        raise SupervisorError(
            "no GPUs are declared: give --gpu KIND:MEMORY for each, such as "
            "`muxflow up --gpu T4:16GiB --gpu A100:40GiB`, "
            f"or --gpus FILE with tables such as {inventory.EXAMPLE.strip()!r}"
        )

    def _port(self) -> int:
        if self._plan.port is not None:
            if free_port(self._plan.port) != self._plan.port:
                raise SupervisorError(f"port {self._plan.port} is taken; give another one with --port, or none")
            return self._plan.port
        before = self._state.read_connection()
        return free_port(int(before.server.rpartition(":")[2]) if before else 0)

    def _settings(self, url: str) -> dict[str, Any]:
        tree: dict[str, Any] = {
            "bus": {"servers": [url]},
            "tenants": {"default": {}},
            "executor": {
                "node": self._plan.node,
                "state_dir": str(self._state.executor),
                "inventory": str(self._state.inventory),
            },
        }
        for keys, value in self._plan.overrides:
            try:
                toml.assign(tree, keys, value)
            except ValueError as error:
                raise SupervisorError(f"--set {error}") from None
        return tree

    def _program(self, entry: ServiceEntry, credentials: tuple[Credentials, ...]) -> Program:
        before = self._state.read_connection()
        mine = next(each for each in credentials if each.role is entry.role)
        return Program(
            name=entry.name,
            argv=(sys.executable, "-m", entry.module),
            env={
                CONFIG_VARIABLE: str(self._state.settings),
                SUPERVISOR_VARIABLE: str(os.getpid()),
                "MUXFLOW_BUS__CREDENTIALS": str(self._state.root / mine.path),
                "MUXFLOW_BUS__INBOX_PREFIX": mine.inbox_prefix,
            },
            port=before.http_ports.get(entry.name, 0) if before else 0,
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
                log = keeper.program.log
                words = server.last_words(log) if keeper.program.name == server.NAME else journal.last_words(log)
                raise SupervisorError(f"{keeper.program.name} does not start: {words} (log: {log})")

    async def _watch(self, connection: ConnectionFile) -> None:
        """Keep logs bounded; after a restart of the server, put back what it keeps in memory only."""
        starts = self._keepers[0].starts
        while not self._stopping.is_set():
            for keeper in self._keepers:
                journal.bound(keeper.program.log)
            if self._keepers[0].starts != starts and await self._keepers[0].ready() is None:
                starts = self._keepers[0].starts
                try:
                    await self._make_streams(connection.server, connection.credentials)
                except ServerError as error:
                    self._report(Waiting(reasons={server.NAME: str(error)}))
            await self._pause(1.0)

    async def _make_streams(self, url: str, credentials: tuple[Credentials, ...]) -> None:
        await server.make_streams(self._state, url, credentials, ttl_s={})

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

    def _ready(self, connection: ConnectionFile, gpus: tuple[Gpu, ...], seconds: float) -> Ready:
        return Ready(
            seconds=round(seconds, 3),
            state_dir=str(self._state.root),
            server=connection.server,
            node=connection.node,
            gpus=inventory.describe(gpus),
            pids={keeper.program.name: keeper.pid or 0 for keeper in self._keepers},
            ports={keeper.program.name: keeper.program.port for keeper in self._keepers},
            logs=str(self._state.logs),
        )
