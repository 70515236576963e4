"""Attempts on disk: one directory each, written by the executor and the attempt's shim, one file each.

==================  ==========  ==================================================================================
file                written by  says
==================  ==========  ==================================================================================
``intent.json``     executor    what is to run; there before anything is started, and as long as the attempt is known
``shim.json``       whoever     who alone may start the program: a shim, or an executor that makes sure none does
                    is first
``started.json``    shim        that the program runs, and as which process
``stop.json``       executor    that it shall stop, and why
``exit.json``       shim        how it ended, when nothing of it is left (the executor writes it when the shim is dead)
``reported``        executor    that the bus has acked its ``exited``
``output.<n>``      shim        what it printed, from logical offset n on
==================  ==========  ==================================================================================

Every file but the output is replaced in one step. A file that cannot be decoded counts as missing, and is logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import structlog

from muxflow.attempts import attempt_from_name, directory_name, directory_prefix
from muxflow.contracts import Attempt, Checkpoint, ExitStatus, Purpose, StopCause
from muxflow.contracts.event import Bytes, Count, Seconds, TimeNs
from muxflow_executor.shim import records
from muxflow_executor.shim.output import SEGMENT

log = structlog.get_logger()

_SUBMISSION_CHARACTERS: Final = 16
_SUBMISSION: Final = "submission.json"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the shim needs. No secret is in here: the environment goes from memory to memory."""

    argv: tuple[str, ...]
    workdir: str
    cgroup: str | None
    """Directory of the attempt's own cgroup (v2), made by the shim; null where that is not permitted."""
    lease_path: str
    lease_poll_s: Seconds
    lease_grace_s: Seconds
    """Longest time between SIGTERM and SIGKILL once the lease has run out."""
    stop_grace_s: Seconds
    """Time between SIGTERM and SIGKILL that the job declares: the executor's ladder keeps to it."""
    kill_grace_s: Seconds = 0
    """After this the shim kills though nobody told it to: the executor is dead, or hangs."""
    drain_s: Seconds = 0
    """How long what is left when the program ends may live on without the executor's word; 0: it is killed at once."""
    log_bytes: Bytes
    nice: Count = 0
    """Added to the program's niceness."""


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that this node has taken up."""

    attempt: Attempt
    node: str
    gpu: str
    run_id: str
    """Mark in the environment of every process of the attempt: `MUXFLOW_RUN_ID`."""
    boot_id: str
    created_ns: TimeNs
    submission_id: str = ""
    """Which submission of the job this is an attempt of."""
    purpose: Purpose = Purpose.RUN
    checkpoint: Checkpoint | None = None
    run_dir: str | None = None
    """Run directory with its pages; null when its GPU use is not protected."""
    memory_quota_bytes: Bytes = 0
    """Device memory that it may use, where that is protected."""
    order: Order | None = None
    """Null for an attempt that is never to be started."""


class ProcessRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A process, named for good."""

    pid: Count
    start_ticks: Count
    """Start time in clock ticks since boot."""
    boot_id: str


class Started(ProcessRecord, frozen=True, kw_only=True):
    """The program runs."""

    pgid: Count
    time_ns: TimeNs
    boottime_ns: Count


class StopRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The program shall stop."""

    cause: StopCause
    reason: str = ""
    hard: bool = False
    """Nothing may be saved, and nothing may trickle."""


class Ended(ExitStatus, frozen=True, kw_only=True):
    """How the attempt ended, and when."""

    started_ns: TimeNs = 0
    """0 if the program never started."""
    ended_ns: TimeNs
    boot_id: str = ""

    @property
    def status(self) -> ExitStatus:
        """The part that travels."""
        return ExitStatus(**{name: getattr(self, name) for name in ExitStatus.__struct_fields__})


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What tells this state directory from every other."""

    mark: str


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """Whose output it is, kept with it."""

    submission_id: str = ""


T = TypeVar("T", bound=msgspec.Struct)


class AttemptDirectory:
    """One attempt's files."""

    def __init__(self, path: Path, intent: Intent) -> None:
        self.path = path
        self.intent = intent

    @property
    def key(self) -> Attempt:
        return self.intent.attempt

    @property
    def checkpoint_mark(self) -> Path:
        """The job touches this file when it has saved its state."""
        return self.path / "checkpointed"

    def shim(self) -> ProcessRecord | None:
        return read_record(self.path / "shim.json", ProcessRecord)

    def started(self) -> Started | None:
        return read_record(self.path / "started.json", Started)

    def stop_request(self) -> StopRequest | None:
        return read_record(self.path / "stop.json", StopRequest)

    def ended(self) -> Ended | None:
        return read_record(self.path / "exit.json", Ended)

    @property
    def reported(self) -> bool:
        return (self.path / "reported").exists()

    def request_stop(self, request: StopRequest) -> None:
        """Write down why it shall stop; the first reason stands, unless a rule is broken. Raises OSError."""
        known = self.stop_request() if request.cause is StopCause.BREACH else None
        if (known is not None and known.cause is not StopCause.BREACH) or not (self.path / "stop.json").exists():
            write_record(self.path / "stop.json", request)

    def claim(self) -> bool:
        """Make sure that no shim starts the program any more; False when one has claimed it already."""
        return records.claim(str(self.path))

    def record_ended(self, ended: Ended) -> None:
        """Write the exit in place of a shim that is dead. Raises OSError."""
        write_record(self.path / "exit.json", ended)

    def mark_reported(self) -> None:
        (self.path / "reported").touch()

    def complaint(self) -> str:
        """Last line that the shim printed about itself; empty when it had nothing to complain about."""
        try:
            lines = (self.path / "shim.err").read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


class AttemptStore:
    """All attempts that a node has a record of, in its state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._attempts = state_dir / "attempts"
        self._ended = state_dir / "ended"
        self._mark = state_dir / "mark.json"
        self._checkpoints = state_dir / "checkpoints"

    def mark(self) -> str:
        """Give the random mark of this state directory; the same as long as the directory is. Raises OSError."""
        mark = read_record(self._mark, Mark)
        if mark is None:
            mark = Mark(mark=secrets.token_hex(8))
            write_record(self._mark, mark)
        return mark.mark

    def prepare(self) -> None:
        """Make the directories; drop what a killed executor had not finished making. Raises OSError."""
        for directory in (self._attempts, self._ended, self._checkpoints):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for unfinished in self._attempts.glob(".new-*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def path_of(self, attempt: Attempt) -> Path:
        """Where the attempt's directory is, or would be."""
        return self._attempts / directory_name(attempt)

    def create(self, intent: Intent, ended: Ended | None = None) -> AttemptDirectory:
        """Record an attempt, durably. With `ended` it is one that never starts.

        Raises FileExistsError when there is or was such an attempt, OSError when the disk does not take it.
        """
        path = self.path_of(intent.attempt)
        unfinished = path.with_name(f".new-{path.name}")
        if path.exists() or self._ended_before(intent):
            raise FileExistsError(f"{intent.attempt} is recorded already")
        try:
            unfinished.mkdir(mode=0o700)
            if ended is not None:
                records.claim(str(unfinished))
                write_record(unfinished / "exit.json", ended)
            write_record(unfinished / "intent.json", intent)
            unfinished.rename(path)
            records.sync_directory(str(self._attempts))
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return AttemptDirectory(path, intent)

    def _ended_before(self, intent: Intent) -> bool:
        """Whether this very attempt has ended here. One of an earlier job of the same name makes room."""
        kept = self._ended / directory_name(intent.attempt)
        if not kept.exists():
            return False
        known = read_record(kept / _SUBMISSION, Submission)
        if known is None or known.submission_id == intent.submission_id or not intent.submission_id:
            return True
        for output in self._ended.iterdir():  # later attempts of that job would be taken for newer ones
            prefix, _, number = output.name.rpartition(".")
            same_job = number.isdigit() and prefix == directory_prefix(intent.attempt.tenant, intent.attempt.job)
            if same_job and read_record(output / _SUBMISSION, Submission) == known:
                shutil.rmtree(output, ignore_errors=True)
        return False

    def scan(self) -> Iterator[AttemptDirectory]:
        """Find every attempt. One whose intent cannot be read is rebuilt from its directory's name."""
        for path in sorted(self._attempts.iterdir()):
            if path.name.startswith("."):
                continue
            intent = read_record(path / "intent.json", Intent) or _intent_from_name(path.name)
            if intent is None:
                log.error("not an attempt; left alone", directory=path.name)
                continue
            yield AttemptDirectory(path, intent)

    def forget(self, directory: AttemptDirectory) -> None:
        """Drop the record of an attempt; its output stays for a while. Raises OSError."""
        kept = self._ended / directory.path.name
        write_record(directory.path / _SUBMISSION, Submission(submission_id=directory.intent.submission_id))
        directory.path.rename(kept)
        os.utime(kept)
        for path in kept.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.startswith((SEGMENT, "exit.json", _SUBMISSION)):
                path.unlink(missing_ok=True)

    def output_of(self, tenant: str, job: str, attempt: int | None) -> tuple[int, Path] | None:
        """Find the directory that holds the output of an attempt, or of the newest: its number and path.

        It may move at any moment, from the attempts to the ended ones: so they are looked at in this order.
        """
        found: dict[int, Path] = {}
        for parent in (self._attempts, self._ended):
            if attempt is not None:
                path = parent / directory_name(Attempt(tenant=tenant, job=job, attempt=attempt))
                if path.is_dir():
                    found[attempt] = path
                continue
            for path in parent.iterdir():
                prefix, _, number = path.name.rpartition(".")
                if number.isdigit() and prefix == directory_prefix(tenant, job):
                    found[int(number)] = path
        return max(found.items()) if found else None

    def tenants_with(self, job: str) -> set[str]:
        """Find the tenants that have output of a job of this name here."""
        found = set()
        for parent in (self._attempts, self._ended):
            for path in parent.iterdir():
                known = attempt_from_name(path.name)
                if known is not None and known.job == job:
                    found.add(known.tenant)
        return found

    def end_of(self, attempt: Attempt) -> Ended | None:
        """How an attempt ended, as long as something of it is kept here."""
        name = directory_name(attempt)
        for parent in (self._attempts, self._ended):
            ended = read_record(parent / name / "exit.json", Ended)
            if ended is not None:
                return ended
        return None

    def checkpoint_dir(self, tenant: str, job: str, submission_id: str) -> Path:
        """Where a job keeps its state from one attempt on this node to the next. Raises OSError."""
        path = self._checkpoints / checkpoint_name(tenant, job, submission_id)
        path.mkdir(mode=0o700, exist_ok=True)
        os.utime(path)
        return path

    def prune(self, *, outputs: int, output_bytes: int, checkpoint_age_s: float) -> None:
        """Drop the oldest outputs of ended attempts beyond these bounds, and checkpoints unused for so long."""
        total = 0
        newest_first = sorted(self._ended.iterdir(), key=_age_s)
        for position, path in enumerate(newest_first):
            total += sum(file.stat().st_size for file in path.glob(f"{SEGMENT}*"))
            if position >= outputs or total > output_bytes:
                shutil.rmtree(path, ignore_errors=True)
        used = {checkpoint_name(found.key.tenant, found.key.job, found.intent.submission_id) for found in self.scan()}
        for path in self._checkpoints.iterdir():
            if path.name not in used and _age_s(path) > checkpoint_age_s:
                shutil.rmtree(path, ignore_errors=True)


def checkpoint_name(tenant: str, job: str, submission_id: str) -> str:
    """Name a job's checkpoint directory: another submission under the same name has another one."""
    name = directory_prefix(tenant, job)
    if not submission_id:
        return name
    return f"{name}~{hashlib.sha256(submission_id.encode()).hexdigest()[:_SUBMISSION_CHARACTERS]}"


def read_record(path: Path, kind: type[T]) -> T | None:
    """Read one file; None when it is missing, or (with a line in the log) cannot be decoded or read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.error("record unreadable", directory=path.parent.name, file=path.name, error=str(error))  # noqa: TRY400
        return None


def write_record(path: Path, record: msgspec.Struct) -> None:
    """Replace a file in one step, durably. Raises OSError."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    records.sync_directory(str(path.parent))


def _intent_from_name(name: str) -> Intent | None:
    """Save an attempt's identity when its intent is lost: its exit can be reported all the same."""
    attempt = attempt_from_name(name)
    if attempt is None:
        return None
    return Intent(attempt=attempt, node="", gpu="", run_id="", boot_id=records.boot_id(), created_ns=0)


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime
