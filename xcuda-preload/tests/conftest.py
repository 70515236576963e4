"""What the tests of the preload library share: the built parts, and pages of one device and one job."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import pytest

from muxflow.contracts import Attempt
from muxflow_decisions.device.gate import FROZEN, Gate, GateState, JobPhase
from muxflow_device import native
from muxflow_device.pages import (
    DevicePageWriter,
    JobControlWriter,
    JobLimits,
    JobOrder,
    JobPage,
    JobUsage,
    ProcessSlot,
)
from muxflow_device.rundir import RunDirectory

ROOM: Final = Path(__file__).parents[1]
GPU: Final = "GPU-00000000-0000-0000-0000-000000000001"
DEADLINE_S: Final = 30.0

T = TypeVar("T")

_BEAT_S: Final = 0.02
_STALE_AFTER_MS: Final = 5_000


def make(*arguments: str) -> None:
    """Runs make for this room; workers of one run build one after the other."""
    (ROOM / "build").mkdir(exist_ok=True)
    with (ROOM / "build" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "--silent", "-C", str(ROOM), *arguments], check=True, timeout=300)


@pytest.fixture(scope="session")
def library() -> Path:
    """The library, as it is shipped."""
    make("all")
    return native.path("libxcuda.so")


@pytest.fixture(scope="session")
def programs() -> Path:
    """Directory of the C programs of these tests, and of the stub driver."""
    make("tests")
    return ROOM / "build" / "plain" / "tests"


def eventually(ask: Callable[[], T], *, deadline_s: float = DEADLINE_S) -> T:
    """Asks until the answer is true, and returns it."""
    until = time.monotonic() + deadline_s
    while not (answer := ask()):
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.005)
    return answer


class Node:
    """A device and a job on it, as monitor and executor would keep them, and programs under the library."""

    def __init__(self, run: RunDirectory, library: Path, driver: Path) -> None:
        self._library = library
        self._driver = driver
        self._run = run
        self.device_dir = run.device(GPU)
        self.job_dir = run.job(Attempt(tenant="tests", job="job", attempt=1))
        self.device = DevicePageWriter(self.device_dir, uuid=GPU, stale_after_ms=_STALE_AFTER_MS)
        self._epoch = 0
        self._processes: list[subprocess.Popen[str]] = []
        self._alive = threading.Event()
        self._alive.set()
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat)
        self._heart.start()
        self.control: JobControlWriter | None = None
        self.environment: dict[str, str] = {}

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            if self._alive.is_set():
                self.device.beat()

    def stop_heart(self) -> None:
        self._alive.clear()

    def start_heart(self) -> None:
        self._alive.set()

    def begin_job(self, *, quota_bytes: int | None = None, context_bytes: int | None = None) -> None:
        limits = JobLimits(gpu=GPU, quota_bytes=quota_bytes, context_bytes=context_bytes)
        order = JobOrder(gate=Gate(state=GateState.OPEN, budget_permille=1000, window_us=65_535), phase=JobPhase.RUN)
        self.control = JobControlWriter(self.job_dir, limits, order)
        JobPage.create(self.job_dir, gpu=GPU)
        self.page = JobPage(self.job_dir)

    def open_gate(self, *, budget_permille: int = 1000, window_us: int = 2000) -> None:
        self.set_gate(Gate(state=GateState.OPEN, budget_permille=budget_permille, window_us=window_us))

    def trickle(self) -> None:
        self.set_gate(Gate(state=GateState.TRICKLE, window_us=2000))

    def freeze(self) -> None:
        self.set_gate(FROZEN)

    def set_gate(self, gate: Gate) -> None:
        self._epoch += 1
        self.device.store_gate(gate, epoch=self._epoch)

    def order(self, state: GateState, phase: JobPhase, *, budget_permille: int = 0) -> None:
        assert self.control is not None
        self.control.store(Gate(state=state, budget_permille=budget_permille, window_us=2000), phase)

    def usage(self) -> JobUsage:
        return self.page.read()

    def process(self, pid: int) -> ProcessSlot:
        """What the process of this pid says, or said last."""
        usage = self.usage()
        return next(slot for slot in (*usage.processes, *usage.ended) if slot.pid == pid)

    def environment_of(self, *, preload: bool = True) -> dict[str, str]:
        """The environment of a program of the job."""
        environment = {**os.environ, **self.environment, "LD_LIBRARY_PATH": str(self._driver)}
        if preload:
            environment |= {
                "LD_PRELOAD": str(self._library),
                "XCUDA_DEVICE_DIR": str(self.device_dir.path),
                "XCUDA_JOB_DIR": str(self.job_dir.path),
            }
        return environment

    def start(
        self, *command: str | Path, preload: bool = True, extra: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(word) for word in command],
            env={**self.environment_of(preload=preload), **(extra or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def run(
        self, *command: str | Path, preload: bool = True, extra: Mapping[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Exit status, output and error output of a program."""
        process = self.start(*command, preload=preload, extra=extra)
        output, errors = process.communicate(timeout=DEADLINE_S)
        return process.returncode, output, errors

    def output_of(self, command: Sequence[str | Path]) -> str:
        status, output, errors = self.run(*command)
        assert (status, errors) == (0, ""), errors
        return output

    def close(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.communicate()
        self._over.set()
        self._heart.join()
        self.device.close()
        if self.control is not None:
            self.control.close()
            self.page.close()


@pytest.fixture
def run_directory() -> Iterator[RunDirectory]:
    with tempfile.TemporaryDirectory(prefix="muxflow-", dir="/dev/shm") as path:
        yield RunDirectory(Path(path))


@pytest.fixture
def node(run_directory: RunDirectory, library: Path, programs: Path) -> Iterator[Node]:
    """A node whose driver is the stub, with a job that has no quota and a gate that is open."""
    node = Node(run_directory, library, programs)
    node.begin_job()
    node.open_gate()
    yield node
    node.close()
