"""From a decided slot to a program under its shim: environment, durable intent, handover."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from muxflow.contracts import Attempt, Purpose, Slot, StopCause
from muxflow_decisions.eviction import LadderPolicy, ladder
from muxflow_device.pages import PageError
from muxflow_executor import spare
from muxflow_executor.attempts import AttemptDirectory, AttemptStore, Ended, Intent, Order
from muxflow_executor.environment import SecretError, environment_of
from muxflow_executor.protection import ProtectedJob, Protection
from muxflow_executor.shim.records import boot_id, shorten

_LEASE_LOOKS: Final = 8
_LEASE_LOOK_MIN_S: Final = 0.05
_LEASE_LOOK_MAX_S: Final = 1.0
_LATE_S: Final = 10.0
"""How much later than the executor a shim kills by itself: it is there for an executor that is dead, or hangs."""


class RunnerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every attempt on this node has in common."""

    node: str
    state_dir: Path
    secrets_dir: Path | None = None
    """Holds ``<tenant>/<name>`` files; null when this node has no secrets."""
    cgroup: Path | None = None
    """Where attempts get their cgroups; null where that is not permitted."""
    lease_s: float
    lease_grace_s: float
    log_bytes: int
    """Bound on the kept output of one attempt."""
    ladder: LadderPolicy = LadderPolicy()
    """How attempts are stopped."""
    nice: int = 0
    """Added to the niceness of every program."""

    @property
    def lease_path(self) -> Path:
        """Where shims read the node's lease."""
        return self.state_dir / "lease"


class Launched(NamedTuple):
    """An attempt that is recorded. Without a shim, how it ended is on disk."""

    directory: AttemptDirectory
    shim: spare.Shim | None = None
    job: ProtectedJob | None = None
    """Its pages, where it is protected."""


class Launcher:
    """Records attempts and starts them. Its methods block on the disk: call them in a thread."""

    def __init__(self, store: AttemptStore, settings: RunnerSettings, protection: Protection | None) -> None:
        self._store = store
        self._settings = settings
        self._protection = protection
        self._spares = spare.Spares(str(settings.state_dir))

    def launch(self, slot: Slot, gpu: str) -> Launched:
        """Record the intent durably, then hand it to a shim.

        Raises FileExistsError when there has been such an attempt, OSError when it could not be recorded: in both
        cases nothing was started.
        """
        intent = self._intent(slot.key, gpu, slot)
        path = self._store.path_of(slot.key)
        if slot.launch.image is not None:
            return Launched(self._store.create(intent, never_started("this node cannot run container images")))
        try:
            environment = environment_of(
                slot,
                node=self._settings.node,
                gpu=gpu,
                run_id=intent.run_id,
                secrets_dir=self._settings.secrets_dir,
                checkpoint_dir=self._store.checkpoint_dir(slot.tenant, slot.job, slot.submission_id),
                checkpoint_mark=path / "checkpointed",
            )
        except SecretError as error:
            return Launched(self._store.create(intent, never_started(str(error))))
        directory = self._store.create(intent)
        job = None
        try:
            (path / "work").mkdir(mode=0o700)
            if self._protection is not None:
                job = self._protection.protect(slot.key, gpu=gpu, quota_bytes=slot.memory_quota_bytes)
                environment = self._protection.environment(job, environment, sm_share_pct=slot.sm_share_pct)
            return Launched(directory, self._hand_over(directory, environment), job)
        except (OSError, ValueError, PageError) as error:
            if directory.claim():
                directory.record_ended(never_started(f"cannot start: {error}"))
            return Launched(directory, None, job)

    def refuse(self, attempt: Attempt, gpu: str, ended: Ended) -> AttemptDirectory:
        """Record an attempt as one that ended without being started. Raises what `launch` raises."""
        return self._store.create(self._intent(attempt, gpu, None), ended)

    def refill(self) -> None:
        """Have a shim wait for the next attempt."""
        self._spares.refill()

    def close(self) -> None:
        """Let the waiting shim end."""
        self._spares.close()

    def _hand_over(self, directory: AttemptDirectory, environment: dict[str, str]) -> spare.Shim:
        shim = self._spares.take()
        try:
            spare.hand_over(shim, directory.path, environment)
        except BrokenPipeError:  # the one that waited was killed; only one can claim the attempt, so another may try
            os.close(shim.started_fd)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(shim.pid, 0)
            shim = spare.spawn(str(self._settings.state_dir))
            spare.hand_over(shim, directory.path, environment)
        return shim

    def _intent(self, attempt: Attempt, gpu: str, slot: Slot | None) -> Intent:
        run_id = secrets.token_hex(16)
        return Intent(
            attempt=attempt,
            node=self._settings.node,
            gpu=gpu,
            run_id=run_id,
            boot_id=boot_id(),
            created_ns=time.time_ns(),
            submission_id=slot.submission_id if slot is not None else "",
            purpose=slot.purpose if slot is not None else Purpose.RUN,
            checkpoint=slot.launch.checkpoint if slot is not None else None,
            run_dir=str(self._protection.run.path) if self._protection is not None else None,
            memory_quota_bytes=slot.memory_quota_bytes if slot is not None else 0,
            order=self._order(slot, run_id) if slot is not None else None,
        )

    def _order(self, slot: Slot, run_id: str) -> Order:
        settings = self._settings
        stop = ladder.Begin(cause=StopCause.DECISION, stop_grace_s=slot.launch.stop_grace_s)
        protected = self._protection is not None
        return Order(
            argv=slot.launch.command,
            workdir=slot.launch.workdir or str(self._store.path_of(slot.key) / "work"),
            cgroup=str(settings.cgroup / run_id) if settings.cgroup is not None else None,
            lease_path=str(settings.lease_path),
            lease_poll_s=min(_LEASE_LOOK_MAX_S, max(_LEASE_LOOK_MIN_S, settings.lease_s / _LEASE_LOOKS)),
            lease_grace_s=settings.lease_grace_s,
            stop_grace_s=slot.launch.stop_grace_s,
            kill_grace_s=ladder.longest_s(stop, settings.ladder) + _LATE_S,
            drain_s=settings.ladder.hard_grace_s + settings.ladder.disconnect_s + _LATE_S if protected else 0.0,
            log_bytes=settings.log_bytes,
            nice=settings.nice,
        )


def never_started(error: str) -> Ended:
    """Make the exit of a program that could not be started."""
    return Ended(error=shorten(error), ended_ns=time.time_ns(), boot_id=boot_id())
