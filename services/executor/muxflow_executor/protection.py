"""What stands between an attempt and the online side of its GPU: its pages in the run directory, xCUDA, MPS.

The executor owns ``<run>/jobs``: there is a directory for each protected attempt, from before its program starts until
nothing of it is left.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any, Final

import structlog

from muxflow.contracts import Attempt, GpuError
from muxflow_decisions.device.gate import FROZEN, Gate, GateState, JobPhase
from muxflow_device import native
from muxflow_device.cuda_errors import call_name, result_name
from muxflow_device.mps import MpsControl, MpsError, MpsNotRunningError
from muxflow_device.pages import JobControlWriter, JobLimits, JobOrder, JobPage, JobUsage, PageError, PageLostError
from muxflow_device.rundir import RunDirectory
from muxflow_executor.attempts import Intent

log = structlog.get_logger()

_OPEN: Final = Gate(state=GateState.OPEN, budget_permille=1000, window_us=65_535)
"""The whole of what the device's gate lets through."""
_OURS: Final = ("XCUDA_", "CUDA_MPS_")
"""What decides whether a job is protected is not the job's to set."""
_ALLOWED: Final = frozenset({"XCUDA_LOG"})
_MOST_BYTES: Final = 2**53
"""More is not told: what a job writes into its page is no reason for an event that nobody can read."""
_BELOW_NORMAL: Final = "1"
"""CUDA_MPS_CLIENT_PRIORITY: 0 is normal, 1 is below; the driver takes it for a hint."""


class ProtectedJob:
    """The executor's hold on the pages of one attempt."""

    def __init__(self, run: RunDirectory, attempt: Attempt, limits: JobLimits) -> None:
        """Take the pages over, or make them. Raises `PageError`, OSError."""
        self.directory = run.job(attempt)
        self.device = run.device(limits.gpu)
        self._limits = limits
        self._mps = MpsControl(self.device, uuid=limits.gpu)
        JobPage.create(self.directory, gpu=limits.gpu)
        self._control = self._take_control(JobOrder(gate=_OPEN, phase=JobPhase.RUN))
        try:
            self._page = JobPage(self.directory)
        except BaseException:
            self._control.close()
            raise

    @property
    def shared(self) -> bool:
        """Whether others are on its GPU at the same time, through MPS: its control daemon has left its mark.

        Programs that are told of a daemon that runs no more run without one.
        """
        return (self.device.mps_pipe / "control").exists()

    def set_gate(self, gate: Gate, phase: JobPhase, deadline_ns: int | None = None) -> None:
        """Let this hold for the job from now on; the deadline is by CLOCK_MONOTONIC, as the ladder's."""
        deadline_boottime_ns = None
        if deadline_ns is not None:
            deadline_boottime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + deadline_ns - time.monotonic_ns()
        try:
            self._control.store(gate, phase, deadline_boottime_ns=deadline_boottime_ns)
        except PageLostError as error:
            log.error("job control lost; making it anew", job=self.directory.name, error=str(error))  # noqa: TRY400
            self._make_anew(JobOrder(gate=gate, phase=phase, deadline_boottime_ns=deadline_boottime_ns))

    def stop_at_once(self) -> None:
        """Let nothing more be launched."""
        self.set_gate(FROZEN, JobPhase.STOP_HARD)

    def usage(self) -> JobUsage:
        """What its processes say of themselves."""
        return self._page.read()

    def drained(self) -> bool:
        """Whether it has processes on the GPU, and all say that nothing of them is or will be in flight."""
        usage = self.usage()
        return bool(usage.processes) and usage.drained

    def gpu_error(self) -> GpuError | None:
        """The first sticky CUDA error of any of its processes, as they tell it; ended ones too."""
        usage = self.usage()
        failed = [process for process in (*usage.processes, *usage.ended) if process.error is not None]
        first = min(failed, key=lambda process: process.error_boottime_ns or 0, default=None)
        if first is None or first.error is None:
            return None
        boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return GpuError(
            code=first.error,
            name=result_name(first.error),
            call=call_name(first.error_call) if first.error_call is not None else "",
            pid=first.pid,
            time_ns=boot_ns + first.error_boottime_ns if first.error_boottime_ns is not None else 0,
        )

    def refused_bytes(self) -> int | None:
        """GPU memory that its processes were refused in all, as they tell it; None where there is no such word."""
        usage = self.usage()
        refused_bytes = sum(process.refused_bytes for process in (*usage.processes, *usage.ended))
        return min(refused_bytes, _MOST_BYTES) or None

    def in_flight(self) -> bool:
        """Whether something that its processes have launched may still run."""
        return any(process.inflight and not process.drained for process in self.usage().processes)

    async def disconnect(self, pids: Collection[int]) -> None:
        """Have MPS let go of these processes, as far as they are its clients: after that their end hurts nobody."""
        try:
            clients = {client for server in await self._mps.servers() for client in server.clients}
        except MpsNotRunningError:
            return
        except MpsError as error:
            log.error("MPS does not tell its clients", job=self.directory.name, error=str(error))  # noqa: TRY400
            return
        for pid in sorted(clients & set(pids)):
            try:
                await self._mps.terminate_client(pid)
            except MpsError as error:
                log.error("MPS does not let go", job=self.directory.name, pid=pid, error=str(error))  # noqa: TRY400

    def close(self) -> None:
        """Let go of the pages; what they say stays in force."""
        self._control.close()
        self._page.close()

    def remove(self) -> None:
        """Drop the pages: nothing of the attempt is left."""
        self.close()
        self.directory.remove()

    def _take_control(self, order: JobOrder) -> JobControlWriter:
        return JobControlWriter(self.directory, self._limits, order)

    def _make_anew(self, order: JobOrder) -> None:
        """Put a new page in the place of the one that is gone: xCUDA looks at its name again and again."""
        try:
            control = self._take_control(order)
        except (PageError, OSError) as error:
            log.error("job control cannot be made", job=self.directory.name, error=str(error))  # noqa: TRY400
            return
        self._control.close()
        self._control = control


class Protection:
    """All protected attempts of one node."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._lock: IO[Any] | None = None

    def open(self) -> None:
        """Make sure that everything is there, and that no other executor uses it. Raises OSError."""
        library = str(native.path("libxcuda.so"))
        if any(character in library for character in " :"):
            raise OSError(f"{library}: no library can be preloaded from a path with a blank or a colon in it")
        self.run.prepare()
        lock = (self.run.path / "executor.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise OSError("in use by another executor") from None
        self._lock = lock

    def close(self) -> None:
        """Leave it to the next executor."""
        if self._lock is not None:
            self._lock.close()

    def sweep(self, live: Collection[Attempt]) -> None:
        """Drop what an executor that was killed has left of all other attempts."""
        names = {self.run.job(attempt).name for attempt in live}
        for directory in self.run.jobs():
            if directory.name not in names:
                directory.remove()

    def protect(self, attempt: Attempt, *, gpu: str, quota_bytes: int) -> ProtectedJob:
        """Make the pages of an attempt that is about to start, all or none. Raises `PageError`, OSError."""
        try:
            return ProtectedJob(self.run, attempt, JobLimits(gpu=gpu, quota_bytes=quota_bytes))
        except BaseException:
            self.drop(attempt)
            raise

    def drop(self, attempt: Attempt) -> None:
        """Drop the pages of an attempt of which nothing is left, if there are any."""
        self.run.job(attempt).remove()

    def environment(
        self,
        job: ProtectedJob,
        wanted: Mapping[str, str],
        *,
        sm_share_pct: int | None,
        inherited: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """Give the environment of the program: what is `wanted`, and what makes it a protected one.

        The program finds the driver where the executor finds it; only a simulated one is in a place of its own.
        """
        surroundings = os.environ if inherited is None else inherited
        environment = {name: value for name, value in wanted.items() if not name.startswith(_OURS) or name in _ALLOWED}
        environment |= {
            "LD_PRELOAD": _joined(str(native.path("libxcuda.so")), wanted.get("LD_PRELOAD")),
            "XCUDA_DEVICE_DIR": str(job.device.path),
            "XCUDA_JOB_DIR": str(job.directory.path),
        }
        if "MUXFLOW_SIMGPU" in surroundings:
            environment["MUXFLOW_SIMGPU"] = surroundings["MUXFLOW_SIMGPU"]
        if "LD_LIBRARY_PATH" in surroundings:
            environment["LD_LIBRARY_PATH"] = _joined(wanted.get("LD_LIBRARY_PATH"), surroundings["LD_LIBRARY_PATH"])
        if sm_share_pct is not None:
            environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(sm_share_pct)
        if job.shared:
            environment |= {
                "CUDA_MPS_PIPE_DIRECTORY": str(job.device.mps_pipe),
                "CUDA_MPS_LOG_DIRECTORY": str(job.device.mps_log),
                "CUDA_MPS_CLIENT_PRIORITY": _BELOW_NORMAL,
            }
        return environment


def adopt(intent: Intent) -> ProtectedJob | None:
    """Take over the pages of an attempt that runs; None, and a line in the log, where that is not possible.

    They are where they were when it started, also if the settings have changed.
    """
    if intent.run_dir is None:
        return None
    limits = JobLimits(gpu=intent.gpu, quota_bytes=intent.memory_quota_bytes)
    try:
        return ProtectedJob(RunDirectory(Path(intent.run_dir)), intent.attempt, limits)
    except (PageError, OSError) as error:
        log.error("attempt cannot be held at its gate", attempt=str(intent.attempt), error=str(error))  # noqa: TRY400
        return None


def _joined(*parts: str | None) -> str:
    return os.pathsep.join(part for part in parts if part)
