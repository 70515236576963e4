"""The run directory of a node: where its services and its jobs meet without the bus.

::

    <run>/devices/<GPU UUID>/device     device page, written by the monitor
    <run>/devices/<GPU UUID>/beacons/   beacon pages, each of an online process; the directory is the monitor's
    <run>/devices/<GPU UUID>/breaches   attempts that have broken a rule, written by the monitor for the evictor
    <run>/devices/<GPU UUID>/mps/       CUDA_MPS_PIPE_DIRECTORY of the GPU's control daemon
    <run>/devices/<GPU UUID>/mps-log/   CUDA_MPS_LOG_DIRECTORY
    <run>/jobs/<attempt>/control        job control, written by the executor
    <run>/jobs/<attempt>/job            job page, created by the executor, slots written by the job's processes
    <run>/executor.sock                 node-local socket of the executor

It belongs on a tmpfs: pages are mapped, and written ten times a second. Directories can be passed through by everyone
and listed by their owner alone: a job that is told its own directories sees no others. In `beacons`, everybody can make
files and list them, as in /tmp.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

from muxflow.attempts import attempt_from_name, directory_name
from muxflow.contracts import Attempt, decode_token, encode_token

VARIABLE: Final = "MUXFLOW_RUN_DIR"

ANYBODYS: Final = 0o1777
"""Everybody makes files there, and nobody touches those of others."""

_PASSED_THROUGH: Final = 0o711
_OWN: Final = 0o700
_SOCKET_PATH_BYTES_MAX: Final = 107
"""`sun_path` of a Unix socket, less its NUL."""


class RunDirectory:
    """Everything that is kept there, by name. Nothing is created before `prepare`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def default(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Find the directory that all services of this user on this node agree on without being told.

        ``$MUXFLOW_RUN_DIR``; else ``/run/muxflow`` for root; else ``$XDG_RUNTIME_DIR/muxflow``; else
        ``/dev/shm/muxflow-<uid>``.
        """
        environment = os.environ if environment is None else environment
        if chosen := environment.get(VARIABLE):
            return cls(Path(chosen))
        if os.geteuid() == 0:
            return cls(Path("/run/muxflow"))
        if runtime := environment.get("XDG_RUNTIME_DIR"):
            return cls(Path(runtime) / "muxflow")
        return cls(Path(f"/dev/shm/muxflow-{os.geteuid()}"))  # noqa: S108  # prepare() looks at who owns it

    def prepare(self) -> None:
        """Make it. Raises OSError, also when it is there and others could have put something into it."""
        for directory in (self.path, self.path / "devices", self.path / "jobs"):
            _make(directory, _PASSED_THROUGH)

    def device(self, uuid: str) -> DeviceDirectory:
        """Name the directory of a GPU."""
        return DeviceDirectory(self.path / "devices" / encode_token(uuid))

    def devices(self) -> Iterator[DeviceDirectory]:
        """Find the GPUs that have a directory."""
        return (DeviceDirectory(path) for path in _directories(self.path / "devices") if _decodes(path.name))

    def job(self, attempt: Attempt) -> JobDirectory:
        """Name the directory of an attempt."""
        return JobDirectory(self.path / "jobs" / directory_name(attempt))

    def jobs(self) -> Iterator[JobDirectory]:
        """Find the attempts that have a directory; its pages may not be there yet, or no longer."""
        return (JobDirectory(path) for path in _directories(self.path / "jobs"))

    @property
    def executor_socket(self) -> Path:
        """Where the executor listens. Raises ValueError when the path is too long for a socket."""
        path = self.path / "executor.sock"
        if len(os.fsencode(path)) > _SOCKET_PATH_BYTES_MAX:
            raise ValueError(
                f"{path} is longer than the {_SOCKET_PATH_BYTES_MAX} bytes of a socket's name; "
                f"choose a shorter run directory, by {VARIABLE} or in the settings"
            )
        return path


class DeviceDirectory:
    """What a node keeps of one GPU."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def uuid(self) -> str:
        return decode_token(self.path.name)

    @property
    def device_page(self) -> Path:
        return self.path / "device"

    @property
    def beacons(self) -> Path:
        return self.path / "beacons"

    @property
    def breaches(self) -> Path:
        return self.path / "breaches"

    @property
    def mps_pipe(self) -> Path:
        """For ``CUDA_MPS_PIPE_DIRECTORY``."""
        return self.path / "mps"

    @property
    def mps_log(self) -> Path:
        """For ``CUDA_MPS_LOG_DIRECTORY``."""
        return self.path / "mps-log"

    def create(self) -> None:
        """Make it, and what lies above it. Raises OSError as `RunDirectory.prepare`."""
        RunDirectory(self.path.parent.parent).prepare()
        _make(self.path, _PASSED_THROUGH)

    def create_beacons(self) -> None:
        """Make the directory in which online processes, of whatever user, make their beacon pages. Raises OSError."""
        self.create()
        with contextlib.suppress(FileExistsError):
            self.beacons.mkdir()
        if not stat.S_ISDIR(self.beacons.lstat().st_mode):
            raise NotADirectoryError(f"{self.beacons} is no directory")
        self.beacons.chmod(ANYBODYS)

    def create_mps(self) -> None:
        """Make the directories of the control daemon: clients pass through to its pipes, its logs are its user's."""
        self.create()
        _make(self.mps_pipe, _PASSED_THROUGH)
        _make(self.mps_log, _OWN)


class JobDirectory:
    """What a node keeps of one attempt while it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def attempt(self) -> Attempt | None:
        """Whose it is; None where the name was too long and is shortened."""
        return attempt_from_name(self.name)

    @property
    def control_page(self) -> Path:
        return self.path / "control"

    @property
    def job_page(self) -> Path:
        return self.path / "job"

    def create(self) -> None:
        """Make it, and what lies above it. Raises OSError as `RunDirectory.prepare`."""
        RunDirectory(self.path.parent.parent).prepare()
        _make(self.path, _PASSED_THROUGH)

    def remove(self) -> None:
        """Drop it with all that is in it; whoever has mapped a page keeps it. It may be gone already."""
        shutil.rmtree(self.path, ignore_errors=True)


def _make(directory: Path, mode: int) -> None:
    """Make one directory, or see that it is ours: a name in /dev/shm can be taken by anybody."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=mode)
        directory.chmod(mode)  # whatever the umask says
    except FileExistsError:
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{directory} is no directory") from None
        if found.st_uid not in (os.geteuid(), 0):
            raise PermissionError(f"{directory} belongs to user {found.st_uid}, who could forge pages") from None
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{directory} is writable by others, who could forge pages") from None


def _directories(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if not path.name.startswith(".") and path.is_dir())
    except FileNotFoundError:
        return []


def _decodes(token: str) -> bool:
    try:
        decode_token(token)
    except ValueError:
        return False
    return True
