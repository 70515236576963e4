"""Evictions under way, on disk: whatever is killed, each gets its two alerts, and no third."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

import msgspec
import structlog

from muxflow.contracts import Attempt
from muxflow.contracts.devices import EvictionAlert, GpuSample
from muxflow.contracts.event import Milliseconds, TimeNs

log = structlog.get_logger()


class Eviction(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt that is put off a GPU, as it was decided."""

    id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    """Begins the ids of both alerts: nobody can guess it and publish under them before."""
    gpu: str
    attempt: Attempt
    cause: str
    hard: bool
    breach: bool = False
    workload: str | None
    before: GpuSample | None
    decided_ns: TimeNs

    def begun(self, node: str) -> EvictionAlert:
        """Make the alert of the decision."""
        return self._alert("begun", node)

    def over(self, node: str, *, after: GpuSample | None, total_ms: Milliseconds) -> EvictionAlert:
        """Make the alert of the end."""
        return msgspec.structs.replace(self._alert("over", node), after=after, total_ms=total_ms)

    def _alert(self, which: str, node: str) -> EvictionAlert:
        return EvictionAlert(
            id=f"{self.id}.{which}",
            node=node,
            gpu=self.gpu,
            tenant=self.attempt.tenant,
            job=self.attempt.job,
            attempt=self.attempt.attempt,
            cause=self.cause,
            breach=self.breach,
            workload=self.workload,
            before=self.before,
            decided_ns=self.decided_ns,
        )


class Ledger:
    """The evictions that are not over, one file each. Its methods block on the disk: call them in a thread.

    Nothing is synced: what is written survives the evictor, and a reboot survives no attempt.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self) -> list[Eviction]:
        """Make the directory, and give what an earlier evictor had begun. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Eviction))
            except msgspec.DecodeError as error:
                log.error("eviction unreadable, dropped", file=path.name, error=str(error))  # noqa: TRY400
                path.unlink()
        return found

    def enter(self, eviction: Eviction) -> None:
        """Remember an eviction. Raises OSError."""
        path = self._path(eviction)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_bytes(msgspec.json.encode(eviction))
        unfinished.replace(path)

    def strike(self, eviction: Eviction) -> None:
        """Forget it: both its alerts are on disk, in the outbox."""
        with contextlib.suppress(FileNotFoundError):
            self._path(eviction).unlink()

    def _path(self, eviction: Eviction) -> Path:
        return self._directory / f"{eviction.id}.json"
