"""NVIDIA MPS: one control daemon per GPU, started apart from our services, spoken to as people speak to it.

The daemon has no other interface than the text protocol of ``nvidia-cuda-mps-control``: commands on its standard input,
answers on its standard output. An answer has no end mark, and a front end that comes while another one is connected is
dropped, sometimes without a word. So a question whose answer is never empty follows every command: where its answer is
missing, nothing was heard, and the command is given again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec
import structlog

from muxflow.contracts.event import ThreadPercentage
from muxflow_device.rundir import DeviceDirectory

log = structlog.get_logger()

BINARY: Final = "nvidia-cuda-mps-control"
DEADLINE_S: Final = 5.0
"""The daemon answers within milliseconds, also when its server does not."""

_WITNESS: Final = "get_default_active_thread_percentage"
_WITNESS_ANSWER: Final = re.compile(r"\d+(\.\d+)?")
_NOT_RUNNING: Final = "Cannot find MPS control daemon"
_RUNNING: Final = "already running"
_FORBIDDEN: Final = "Insufficient privileges"
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.1


class MpsError(Exception):
    """MPS does not do what was asked; the message says what to do."""


class MpsNotRunningError(MpsError):
    """No control daemon serves this GPU."""


class ServerState(StrEnum):
    """What a server says of itself, and `UNKNOWN` for what no version that we know says."""

    INITIALIZING = "INITIALIZING"
    ACTIVE = "ACTIVE"
    FAULT = "FAULT"
    """A client broke it: all clients lose their work, and no new one is let in until they have ended."""
    UNKNOWN = "UNKNOWN"


class MpsServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server process: started by the daemon for the first client of a user."""

    pid: int
    state: ServerState
    clients: tuple[int, ...]
    """Pids of the processes that have a context through it."""


class MpsControl:
    """The control daemon of one GPU. Every call has a deadline, and raises MpsError when it has passed."""

    def __init__(
        self,
        directory: DeviceDirectory,
        *,
        uuid: str,
        environment: Mapping[str, str] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """`environment` is what the daemon and its servers inherit, and where the binary is looked up; ours if None."""
        self._directory = directory
        self._environment = {
            **(os.environ if environment is None else environment),
            "CUDA_MPS_PIPE_DIRECTORY": str(directory.mps_pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(directory.mps_log),
            "CUDA_VISIBLE_DEVICES": uuid,
        }
        self._deadline_s = deadline_s
        self._one_at_a_time = asyncio.Lock()

    async def start(self) -> bool:
        """Start the daemon, apart from us: it goes on when we end. False when it runs already and is taken over.

        Raises MpsError when it cannot be started, or belongs to another user.
        """
        self._check_owner()
        if await self.running():
            return False
        self._directory.create_mps()
        with tempfile.TemporaryFile() as said:  # a pipe would be kept open by the daemon
            process = await self._spawn("-d", stdin=asyncio.subprocess.DEVNULL, output=said.fileno())
            status = await self._finish(process)
            said.seek(0)
            words = said.read().decode(errors="replace").strip()
        if status != 0 and _RUNNING not in words:
            raise MpsError(f"{BINARY} -d: {words or f'ended with status {status}'}; see {self._directory.mps_log}")
        self._check_owner()
        await self._ask(_WITNESS)
        log.info("MPS control daemon", pipe=str(self._directory.mps_pipe), started=status == 0)
        return status == 0

    async def running(self) -> bool:
        """Whether a daemon answers. Raises MpsError when there is one that does not."""
        try:
            await self._ask(_WITNESS)
        except MpsNotRunningError:
            return False
        return True

    async def problem(self) -> str | None:
        """Why MPS does not work on this GPU at present, in words for people; None when it does."""
        try:
            servers = await self.servers()
        except MpsError as error:
            return str(error)
        for server in servers:
            if server.state is ServerState.FAULT:
                return f"MPS server {server.pid} is in FAULT: it serves nobody until its clients have ended"
        return None

    async def servers(self) -> tuple[MpsServer, ...]:
        """See all servers, their states and their clients. One that ends meanwhile is left out."""
        found = []
        for pid in await self._server_pids():
            state = await self._ask(f"get_server_status {pid}")
            clients = await self._ask(f"get_client_list {pid}")
            if not _gone(state) and not _gone(clients):
                found.append(MpsServer(pid=pid, state=_state(state), clients=_numbers(clients)))
        return tuple(found)

    async def _server_pids(self) -> tuple[int, ...]:
        return _numbers(await self._ask("get_server_list"))

    async def _server_of(self, client: int) -> int | None:
        for server in await self._server_pids():
            if client in _numbers(await self._ask(f"get_client_list {server}")):
                return server
        return None

    async def default_thread_percentage(self) -> float:
        """What contexts of clients that say nothing else are given of the SMs. Contexts that are there keep theirs."""
        (answer,) = await self._ask(_WITNESS)
        return float(answer)

    async def set_default_thread_percentage(self, percentage: ThreadPercentage) -> None:
        """Give this to servers that are started from now on. Raises MpsError when the daemon does not take it."""
        answer = await self._ask(f"set_default_active_thread_percentage {percentage}")
        if not answer or answer[-1] != f"{percentage:.1f}":
            raise MpsError(f"the MPS daemon took no thread percentage of {percentage}: {_words(answer)}")

    async def terminate_client(self, pid: int, *, deadline_s: float | None = None) -> bool:
        """Take a client off the GPU without harm to the others; its process learns it by its next call.

        False when it is no client. Raises MpsError when the server does not let go of it.
        """
        server = await self._server_of(pid)
        if server is None:
            return False
        answer = await self._ask(f"terminate_client {server} {pid}", deadline_s=deadline_s)
        if answer[-1:] == ["0"]:
            return True
        if await self._server_of(pid) is None:
            return False
        raise MpsError(f"MPS server {server} does not let go of its client {pid}: {_words(answer)}")

    async def quit(self, *, clients_s: float = 0.0) -> None:
        """End the daemon and its servers, after clients have had this long to end. No daemon is no error."""
        deadline_s = self._deadline_s + clients_s
        try:
            async with asyncio.timeout(deadline_s):
                pause_s = _FIRST_PAUSE_S
                while await self.running():
                    with contextlib.suppress(MpsNotRunningError):
                        async with self._one_at_a_time:
                            await self._converse(f"quit -t {round(clients_s)}")
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        except TimeoutError:
            raise MpsError(
                f"the MPS daemon of {self._directory.mps_pipe} was told to quit and has not for {deadline_s:.1f} s"
            ) from None

    async def _ask(self, command: str, *, deadline_s: float | None = None) -> list[str]:
        """Give one command until it was heard; gives the lines of its answer."""
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        async with self._one_at_a_time:
            dropped = False
            try:
                async with asyncio.timeout(deadline_s):
                    pause_s = _FIRST_PAUSE_S
                    while not (lines := await self._converse(command, _WITNESS)) or not _witnessed(lines):
                        dropped = True
                        await asyncio.sleep(pause_s)
                        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except TimeoutError:
                raise MpsError(self._silence(command, deadline_s, dropped=dropped)) from None
        answer = lines[:-1] if command != _WITNESS else lines[-1:]
        if any(line.startswith(_FORBIDDEN) for line in answer):
            raise MpsError(f"{_words(answer)} Run the executor as the user of the MPS daemon, or end that daemon.")
        return answer

    def _silence(self, command: str, deadline_s: float, *, dropped: bool) -> str:
        """Say why there is no answer."""
        daemon = f"the MPS daemon of {self._directory.mps_pipe}"
        if dropped:
            return (
                f"{daemon} has no time for us: another front end stays connected; end it (look for a running {BINARY})"
            )
        return (
            f"{daemon} has not answered {command!r} for {deadline_s:.1f} s; if it hangs, kill it (its pid is in "
            f"{BINARY}.pid there) once its clients have ended"
        )

    async def _converse(self, *commands: str) -> list[str]:
        """Connect, give the commands, and hear what is said until the end."""
        process = await self._spawn(stdin=asyncio.subprocess.PIPE, output=asyncio.subprocess.PIPE)
        said = "".join(f"{command}\n" for command in commands).encode()
        try:
            out, _ = await process.communicate(said)
        finally:
            await _end(process)
        words = out.decode(errors="replace")
        if _NOT_RUNNING in words:
            raise MpsNotRunningError(f"no MPS daemon runs for {self._directory.mps_pipe}; start it")
        return words.splitlines()

    async def _spawn(self, *arguments: str, stdin: int, output: int) -> asyncio.subprocess.Process:
        binary = shutil.which(BINARY, path=self._environment.get("PATH"))
        if binary is None:
            raise MpsError(
                f"{BINARY} is not on the PATH; it comes with NVIDIA's driver (Debian: nvidia-cuda-mps, Ubuntu: "
                "nvidia-compute-utils), and for simulated GPUs with muxflow_simgpu"
            )
        try:
            return await asyncio.create_subprocess_exec(
                binary,
                *arguments,
                env=self._environment,
                stdin=stdin,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                cwd="/",  # a daemon keeps no file system busy
                start_new_session=True,
            )
        except OSError as error:
            raise MpsError(f"{binary} cannot be started: {error}") from error

    async def _finish(self, process: asyncio.subprocess.Process) -> int:
        try:
            return await asyncio.wait_for(process.wait(), self._deadline_s)
        except TimeoutError:
            raise MpsError(f"{BINARY} -d does not come up; see {self._directory.mps_log}") from None
        finally:
            await _end(process)

    def _check_owner(self) -> None:
        """MPS serves one user; whoever is not root can only use his own daemon."""
        try:
            owner = (self._directory.mps_pipe / "control").lstat().st_uid
        except FileNotFoundError:
            return
        if os.geteuid() not in (0, owner):
            raise MpsError(
                f"the MPS daemon of {self._directory.mps_pipe} belongs to user {owner}, and we are {os.geteuid()}: run "
                "the executor and the online services under one user, or end that daemon"
            )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave no front end behind: while one is connected, nobody else is heard."""
    if process.returncode is None:
        process.kill()
        await process.wait()


def _witnessed(lines: list[str]) -> bool:
    return _WITNESS_ANSWER.fullmatch(lines[-1]) is not None


def _gone(answer: list[str]) -> bool:
    return any(line.endswith("not found") for line in answer)


def _state(answer: list[str]) -> ServerState:
    said = answer[0].strip() if answer else ""
    return ServerState(said) if said in ServerState.__members__ else ServerState.UNKNOWN


def _numbers(answer: list[str]) -> tuple[int, ...]:
    return tuple(int(line) for line in answer if line.strip().isdigit())


def _words(answer: list[str]) -> str:
    return " ".join(answer) or "it said nothing"
