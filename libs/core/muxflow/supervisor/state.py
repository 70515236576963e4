"""The state directory of one machine: who owns it, what lies where in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from muxflow.discovery import CONNECTION_FILE, ConnectionFile
from muxflow.supervisor.hardware import Hardware
from muxflow.supervisor.services import SERVICES
from muxflow.supervisor.storage import Storage


class StateError(Exception):
    """The state directory cannot be used. The message is one line with the fix."""


class StateDirectory:
    """Paths in a state directory. Nothing is there before `open_locked`."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.credentials = self.root / "credentials"
        self.logs = self.root / "logs"
        self.store = self.root / "nats"
        self.executor = self.root / "executor"
        self.server_config = self.root / "nats.conf"
        self.settings = self.root / "settings.toml"
        self.inventory = self.root / "inventory.toml"
        self.hardware = self.root / "hardware.json"
        self.connection = self.root / CONNECTION_FILE
        self.storage = self.root / "storage.json"
        self.lock = self.root / "lock"

    def log(self, name: str) -> Path:
        """Where a program writes."""
        return self.logs / f"{name}.log"

    def own(self, service: str) -> Path:
        """Where a service keeps what it must remember."""
        return self.root / service

    @contextmanager
    def open_locked(self) -> Iterator[None]:
        """Make the directory, for its owner only, and hold it for the block. Raises `StateError`."""
        try:
            self._make()
            lock = self.lock.open("a+")
        except OSError as error:
            raise StateError(
                f"state directory {self.root}: {error.strerror}; give another one with --state-dir"
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise StateError(
                    f"`muxflow up` with pid {lock.read().strip() or '?'} already runs in {self.root}; "
                    "stop it, or give another --state-dir"
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def read_connection(self) -> ConnectionFile | None:
        """Read what the `up` before left; None if there is nothing that can be read."""
        try:
            return msgspec.json.decode(self.connection.read_bytes(), type=ConnectionFile)
        except (OSError, msgspec.DecodeError):
            return None

    def read_storage(self) -> Storage | None:
        """Read what the store was allowed to take the last time; None if there is nothing that can be read."""
        try:
            return msgspec.json.decode(self.storage.read_bytes(), type=Storage)
        except (OSError, msgspec.DecodeError):
            return None

    def read_hardware(self) -> Hardware | None:
        """Read which GPUs the machine had the last time; None if there is nothing that can be read."""
        try:
            found: Hardware = msgspec.json.decode(self.hardware.read_bytes(), type=Hardware)
        except (OSError, msgspec.DecodeError):
            return None
        return found

    def write_connection(self, connection: ConnectionFile) -> None:
        """Tell clients where we are; they see the old file or the new one, never half of one."""
        write_private(self.connection, msgspec.json.format(msgspec.json.encode(connection), indent=2))

    def _make(self) -> None:
        strangers = self.root.is_dir() and not self.lock.exists() and any(self.root.iterdir())
        if strangers:
            raise StateError(
                f"{self.root} is not empty and no state directory of ours; give another one with --state-dir"
            )
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)
        own = (self.own(entry.name) for entry in SERVICES if "state_dir" in entry.told)
        for directory in (self.credentials, self.logs, self.store, *own):
            directory.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, data: bytes) -> None:
    """Replace a file's content, readable by the owner only. OSError when the disk is full or read-only."""
    draft = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    draft.replace(path)
