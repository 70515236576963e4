"""The one class that all services share: settings, log, health, bus, signals and ordered shutdown.

A service is its decisions and little more::

    class Scheduler(Service[SchedulerSettings]):
        name = "scheduler"

        async def start(self) -> None:
            await self.bus.consume(...)


    def main() -> None:
        Scheduler.main(SchedulerSettings)
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

import structlog
from prometheus_client import CollectorRegistry, Gauge

from muxflow import logs
from muxflow.bus import Bus
from muxflow.health import Health, HealthServer
from muxflow.settings import Settings, SettingsError, load

SUPERVISOR_VARIABLE: Final = "MUXFLOW_SUPERVISOR_PID"
"""Set by `muxflow up` for its children: they end when it does, however it ends."""

_PR_SET_PDEATHSIG: Final = 1

S = TypeVar("S", bound=Settings)


class CannotStart(Exception):  # noqa: N818 - it reads as what the operator is told
    """Raised by `Service.start` for what its operator can put right. One line, logged without a traceback."""


class Service(ABC, Generic[S]):
    """One service process. Subclasses say what to start and what to do first when stopping."""

    name: ClassVar[str]
    needs_bus: ClassVar[bool] = True
    """False for a service whose work goes on without the bus: it starts at once, and is ready, while `bus` connects in
    the background. Readers and subscriptions may be opened before it has."""

    def __init__(self, settings: S, bus: Bus, health: Health) -> None:
        self.settings = settings
        self.bus = bus
        self.health = health
        self.log = structlog.get_logger()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def registry(self) -> CollectorRegistry:
        """Where the service registers its metrics."""
        return self.health.registry

    @abstractmethod
    async def start(self) -> None:
        """Begin to work; returns when everything runs. Raises `CannotStart`."""

    async def stop(self, received: signal.Signals) -> None:
        """Finish what must be finished while the bus is still connected."""

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run something beside; if it fails, the service ends with its error and is restarted from outside."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the service with this error."""
        if not self._failure.done():
            self._failure.set_exception(error)

    async def failed(self) -> None:
        """Wait until something fails, and raise it."""
        await asyncio.shield(self._failure)

    async def cancel_tasks(self) -> None:
        """End everything that `spawn` started."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @classmethod
    def main(cls, kind: type[S], argv: list[str] | None = None) -> None:
        """Run the service as this process until a signal ends it: the whole of ``__main__``."""
        parser = argparse.ArgumentParser(prog=f"muxflow-{cls.name}", description=cls.__doc__)
        parser.add_argument("--config", type=Path, help="settings file (TOML); default: $MUXFLOW_CONFIG")
        arguments = parser.parse_args(argv)
        try:
            settings = load(kind, arguments.config)
        except SettingsError as error:
            sys.exit(f"muxflow-{cls.name}: {error}")
        _end_with_supervisor()
        logs.configure(settings.log, service=cls.name)
        sys.exit(asyncio.run(_serve(cls, settings)))


def _end_with_supervisor() -> None:
    """Have the kernel send SIGTERM when the supervisor dies, so that its death leaves nothing behind."""
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    if supervisor is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(supervisor):
        sys.exit("the supervisor is gone")


async def _serve(kind: type[Service[S]], settings: S) -> int:
    log = structlog.get_logger()
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[signal.Signals] = loop.create_future()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _resolve, stopping, number)

    health = Health(CollectorRegistry())
    server = None
    if settings.http.port is not None:
        try:
            server = HealthServer(health, host=settings.http.host, port=settings.http.port)
        except OSError as error:
            log.error("http port cannot be used", port=settings.http.port, error=error.strerror)  # noqa: TRY400
            return 1
    beat = loop.create_task(_beat(health))
    try:
        return await _run(kind, settings, health, stopping, server)
    finally:
        beat.cancel()
        if server is not None:
            server.close()


async def _run(
    kind: type[Service[S]],
    settings: S,
    health: Health,
    stopping: asyncio.Future[signal.Signals],
    server: HealthServer | None,
) -> int:
    log = structlog.get_logger()
    source = f"{kind.name}@{socket.gethostname()}"
    connecting = asyncio.ensure_future(Bus.connect(settings.bus, source=source, wait=kind.needs_bus))
    await asyncio.wait((connecting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not connecting.done():
        connecting.cancel()
        await asyncio.wait((connecting,))
        return 0
    try:
        bus = connecting.result()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told in one line
        log.error("cannot connect to the bus", error=str(error) or type(error).__name__)  # noqa: TRY400
        return 1
    if kind.needs_bus:
        health.require("bus", lambda: None if bus.connected else "not connected")
    connected = Gauge("muxflow_bus_connected", "1 while connected to NATS.", registry=health.registry)
    connected.set_function(lambda: float(bus.connected))
    service = kind(settings, bus, health)
    failing = asyncio.ensure_future(service.failed())
    starting = asyncio.ensure_future(service.start())
    code = 0
    try:
        await asyncio.wait((starting, failing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            log.info("started", pid=os.getpid(), http_port=server.port if server else None)
            await asyncio.wait((failing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            failing.result()
    except CannotStart as error:
        log.error("cannot start", error=str(error))  # noqa: TRY400
        code = 1
    except Exception as error:
        log.exception("failed", error=str(error) or type(error).__name__)
        code = 1
    for pending in (starting, failing):
        pending.cancel()
    await asyncio.wait((starting, failing))
    try:
        await service.stop(stopping.result() if stopping.done() else signal.SIGTERM)
    except Exception:
        log.exception("stopping failed")
        code = 1
    await service.cancel_tasks()
    await bus.close()
    log.info("stopped", exit_code=code)
    return code


def _resolve(stopping: asyncio.Future[signal.Signals], number: signal.Signals) -> None:
    if not stopping.done():
        stopping.set_result(number)


async def _beat(health: Health) -> None:
    while True:
        health.beat()
        await asyncio.sleep(1)
