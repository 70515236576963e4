"""A node's runner in a temporary directory, with real shims and real programs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from muxflow.contracts import Checkpoint, Launch, RunEvent, RunExited, Slot
from muxflow_device.rundir import RunDirectory
from muxflow_executor.attempts import AttemptDirectory, AttemptStore
from muxflow_executor.launch import RunnerSettings
from muxflow_executor.process_runner import ProcessRunner
from muxflow_executor.processes import RUN_ID
from muxflow_executor.protection import Protection
from muxflow_executor.shim.records import boot_id, boottime_ns

SECOND_NS = 10**9
GPU = "GPU-1"


class Node:
    """One state directory, and the runner that has it now."""

    def __init__(self, root: Path, *, run: RunDirectory | None = None, **settings: Any) -> None:
        self.root = root
        self.protection = Protection(run) if run is not None else None
        if self.protection is not None:
            self.protection.open()
        self.state_dir = root / "state"
        self.secrets_dir = root / "secrets"
        self.state_dir.mkdir()
        self.settings = RunnerSettings(
            **{
                "node": "node.a",
                "state_dir": self.state_dir,
                "secrets_dir": self.secrets_dir,
                "lease_s": 120,
                "lease_grace_s": 10,
                "log_bytes": 65_536,
                "nice": 5,
                **settings,
            }
        )
        self.store = AttemptStore(self.state_dir)
        self.told: list[RunEvent] = []
        self.runner = self._make_runner()
        self.hold_lease(120)

    def _make_runner(self) -> ProcessRunner:
        return ProcessRunner(
            self.store,
            self.settings,
            protection=self.protection,
            on_change=lambda: None,
            on_step=lambda _: None,
            on_failure=self._failed,
        )

    def _failed(self, error: BaseException) -> None:
        raise error  # into the event loop's log; what waits for the task runs into its deadline

    async def restart(self) -> None:
        """As an executor that was killed and started again."""
        await self.runner.close()
        self.runner = self._make_runner()
        await self.runner.open()

    def hold_lease(self, seconds: float) -> None:
        temporary = self.state_dir / "lease.new"
        temporary.write_text(f"{boot_id()} {boottime_ns() + int(seconds * SECOND_NS)}\n")
        temporary.replace(self.settings.lease_path)

    def start(self, *command: str, job: str = "job", attempt: int = 1, **launch: Any) -> Slot:
        slot = slot_of(*command, job=job, attempt=attempt, **launch)
        self.runner.start(slot, GPU)
        return slot

    async def fact(self, kind: type[RunEvent], job: str = "job") -> Any:
        """Wait until the runner tells such a fact."""
        async with asyncio.timeout(20):
            while True:
                for event in self.told:
                    if isinstance(event, kind) and event.job == job:
                        return event
                self.told.append(await self.runner.facts.get())

    async def exit_of(self, *command: str, job: str = "job", **launch: Any) -> RunExited:
        self.start(*command, job=job, **launch)
        exited: RunExited = await self.fact(RunExited, job)
        return exited

    def directory(self, job: str = "job", attempt: int = 1) -> Path:
        return self.state_dir / "attempts" / f"default.{job}.{attempt}"

    def attempt(self, job: str = "job") -> AttemptDirectory:
        return next(found for found in self.store.scan() if found.key.job == job)

    def shim_pid(self, job: str = "job") -> int:
        shim = self.attempt(job).shim()
        assert shim is not None
        return shim.pid

    def output(self, job: str = "job") -> str:
        return "".join(path.read_text() for path in sorted(self.directory(job).glob("output.*")))

    async def end(self) -> None:
        """Leave nothing behind, however the test went."""
        self.settings.lease_path.write_text(f"{boot_id()} 0\n")
        await self.runner.close()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await until(lambda: not self.processes())
        if self.protection is not None:
            self.protection.close()
        collect_children()

    def processes(self) -> list[int]:
        """Living processes of this node: shims by their command line, programs by the mark of their attempt."""
        marks = [f"{RUN_ID}={found.intent.run_id}".encode() for found in self.store.scan() if found.intent.run_id]
        return [pid for pid in living() if self._ours(pid, marks)]

    def _ours(self, pid: int, marks: list[bytes]) -> bool:
        proc = Path("/proc") / str(pid)
        with contextlib.suppress(OSError):
            if str(self.state_dir).encode() in (proc / "cmdline").read_bytes().split(b"\0"):
                return True
            environ = (proc / "environ").read_bytes().split(b"\0")
            return any(mark in environ for mark in marks)
        return False


def slot_of(*command: str, job: str = "job", attempt: int = 1, sm_share_pct: int | None = None, **launch: Any) -> Slot:
    return Slot(
        tenant="default",
        job=job,
        attempt=attempt,
        memory_quota_bytes=1,
        sm_share_pct=sm_share_pct,
        launch=Launch(command=command, **{"stop_grace_s": 5.0, **launch}),
    )


def python(code: str) -> tuple[str, ...]:
    """A program in Python that starts as fast as it can."""
    return (sys.executable, "-I", "-S", "-c", code)


def living() -> list[int]:
    pids = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            with contextlib.suppress(OSError):
                if (path / "stat").read_bytes().rpartition(b")")[2].split()[0] not in {b"Z", b"X"}:
                    pids.append(int(path.name))
    return pids


def alive(pid: int) -> bool:
    return pid in living()


def collect_children() -> None:
    """Reap shims that their runner did not see to the end."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


async def until(look: Callable[[], object], seconds: float = 15) -> None:
    """Wait for something that only polling can see."""
    async with asyncio.timeout(seconds):
        while not look():
            await asyncio.sleep(0.01)


SAVES_ON_SIGNAL = """
import os, signal, time
def save(*_):
    open(os.environ["MUXFLOW_CHECKPOINT_MARK"], "w").close()
signal.signal(signal.SIGUSR2, save)
print("ready", flush=True)
while True:
    time.sleep(60)
"""
CHECKPOINT = Checkpoint(signal="SIGUSR2", grace_s=5.0)
