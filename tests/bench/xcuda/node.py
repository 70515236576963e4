"""A device with one offline job, as monitor and executor would keep them, and programs with and without the library."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from muxflow.contracts import Attempt
from muxflow_decisions.device.budget import window_us
from muxflow_decisions.device.gate import FROZEN, Gate, GateState, JobPhase
from muxflow_decisions.device.policy import DevicePolicy
from muxflow_device import native
from muxflow_device.pages import DevicePageWriter, JobControlWriter, JobLimits, JobOrder, JobPage
from muxflow_device.rundir import RunDirectory
from muxflow_simgpu import Operation, SimulatedMachine, native_dir

ROOT = Path(__file__).parents[3]
PROGRAMS = ROOT / "xcuda-preload/build/plain/tests"
IDLE_DRIVER = PROGRAMS / "idle"
GPU = "GPU-00000000-0000-0000-0000-000000000001"
DEADLINE_S = 120.0

POLICY = DevicePolicy()
WINDOW_US = window_us(POLICY.budget_max_permille, POLICY)
"""What an offline job has in flight at most, while the online side is idle."""
BEACON_WINDOW_US = window_us(POLICY.budget_max_permille, POLICY, beacons=True)
"""The same beside online processes that carry the beacon."""
NO_WINDOW_US = 65_535
"""The largest that a gate can say: that of the gate at the launch call alone."""

_BEAT_S = 0.1
_STALE_AFTER_MS = 10_000
_HOLDOFF_US = 500
_CONTEXT_BYTES = 300 << 20
_LEARNING_S = 0.2


def build() -> None:
    """Build what is measured, and what it is measured with; one process after the other."""
    for room, targets in (("xcuda-preload", ("all", "bench")), ("libs/simgpu", ("all",))):
        folder = ROOT / room
        (folder / "build").mkdir(exist_ok=True)
        with (folder / "build/lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            subprocess.run(["make", "--silent", "-C", str(folder), *targets], check=True)


_BEGIN_S = time.monotonic()


def say(line: str) -> None:
    """Tell how far it is, beside the result."""
    print(f"{time.monotonic() - _BEGIN_S:5.0f} s  {line}", file=sys.stderr, flush=True)


class Node:
    """Pages of one device and one job. The gate is open as wide as the policy opens it."""

    def __init__(self, run: RunDirectory, quota_bytes: int | None) -> None:
        self._device_dir = run.device(GPU)
        self._job_dir = run.job(Attempt(tenant="bench", job="job", attempt=1))
        self._device = DevicePageWriter(
            self._device_dir, uuid=GPU, stale_after_ms=_STALE_AFTER_MS, beacon_holdoff_us=_HOLDOFF_US
        )
        self._device_dir.create_beacons()
        limits = JobLimits(gpu=GPU, quota_bytes=quota_bytes, context_bytes=_CONTEXT_BYTES)
        wide = Gate(state=GateState.OPEN, budget_permille=1000, window_us=NO_WINDOW_US)
        self._control = JobControlWriter(self._job_dir, limits, JobOrder(gate=wide, phase=JobPhase.RUN))
        JobPage.create(self._job_dir, gpu=GPU)
        self._epoch = 0
        self.open_gate()
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat)
        self._heart.start()

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            self._device.beat()

    def close(self) -> None:
        self._over.set()
        self._heart.join()
        self._device.close()
        self._control.close()

    def open_gate(self, *, budget_permille: int = 1000, window_us: int = WINDOW_US) -> None:
        self._set(Gate(state=GateState.OPEN, budget_permille=budget_permille, window_us=window_us))

    def freeze(self) -> None:
        self._set(FROZEN)

    def _set(self, gate: Gate) -> None:
        self._epoch += 1
        self._device.store_gate(gate, epoch=self._epoch)

    def offline(self) -> dict[str, str]:
        """Make the variables of a process of the job."""
        return {
            "LD_PRELOAD": str(native.path("libxcuda.so")),
            "XCUDA_DEVICE_DIR": str(self._device_dir.path),
            "XCUDA_JOB_DIR": str(self._job_dir.path),
        }

    def online(self) -> dict[str, str]:
        """Make the variables of an online process with the beacon."""
        return {
            "LD_PRELOAD": str(native.path("libxcuda.so")),
            "XCUDA_MODE": "beacon",
            "XCUDA_DEVICE_DIR": str(self._device_dir.path),
        }


@contextmanager
def node(*, quota_bytes: int | None = None) -> Iterator[Node]:
    """Keep a device and a job for a while."""
    with tempfile.TemporaryDirectory(prefix="muxflow-bench-", dir="/dev/shm") as path:
        kept = Node(RunDirectory(Path(path)), quota_bytes)
        try:
            yield kept
        finally:
            kept.close()


def idle_run(program: str, *arguments: object, extra: Mapping[str, str]) -> list[float]:
    """Run a program on the driver that does nothing; gives the numbers that it prints."""
    done = subprocess.run(
        [str(PROGRAMS / program), *map(str, arguments)],
        env={**os.environ, "LD_LIBRARY_PATH": str(IDLE_DRIVER), **extra},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
    )
    return [float(word) for word in done.stdout.split()]


def idle_instructions(program: str, *arguments: object, extra: Mapping[str, str]) -> int:
    """Count what a program's first thread executes in the round that it measures, on the driver that does nothing."""
    with tempfile.TemporaryDirectory(prefix="muxflow-bench-") as folder:
        subprocess.run(
            [
                "valgrind", "--quiet", "--tool=callgrind", "--separate-threads=yes", "--toggle-collect=measured_round",
                f"--callgrind-out-file={folder}/out", str(PROGRAMS / program), *map(str, arguments),
            ],
            env={**os.environ, "LD_LIBRARY_PATH": str(IDLE_DRIVER), **extra},
            check=True,
            capture_output=True,
            timeout=DEADLINE_S,
        )  # fmt: skip
        found = re.search(r"^totals: (\d+)", (Path(folder) / "out-01").read_text(), re.MULTILINE)
    if not found:
        raise RuntimeError("callgrind counted nothing")
    return int(found[1])


class Gpu:
    """A simulated GPU under MPS, and its log, of which nothing is forgotten."""

    def __init__(self, machine: SimulatedMachine, mps: Path) -> None:
        self._machine = machine
        self._environment = {**os.environ, **machine.environment(), "CUDA_MPS_PIPE_DIRECTORY": str(mps)}
        self._operations: list[Operation] = []

    def start(self, program: str, *arguments: object, extra: Mapping[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(PROGRAMS / program), *map(str, arguments)],
            env={**self._environment, **extra},
            stdout=subprocess.PIPE,
            text=True,
        )

    def look(self) -> None:
        """Keep what the device's own log would forget."""
        after = self._operations[-1].number if self._operations else 0
        self._operations.extend(self._machine.operations(0, after=after))

    def operations(self, pid: int) -> list[Operation]:
        """Give what a process did, up to now, in the order in which it ended."""
        self.look()
        return [each for each in self._operations if each.pid == pid]

    def run(self, program: str, *arguments: object, extra: Mapping[str, str]) -> list[Operation]:
        """Run a program to its end; gives what it did."""
        with self.start(program, *arguments, extra=extra) as process:
            finish(process)
            return self.operations(process.pid)

    def works(self, process: subprocess.Popen[str]) -> None:
        """Wait until a process has been at work for long enough to be known."""
        until(lambda: any(client.pid == process.pid and client.unfinished for client in self._machine.clients(0)))
        time.sleep(_LEARNING_S)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a program that ends well; gives what it printed."""
    output, _ = process.communicate(timeout=DEADLINE_S)
    if process.returncode:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
    return output


@contextmanager
def stopped_at_end(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Let a program run for as long as it is needed."""
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


def until(ask: Callable[[], bool]) -> None:
    """Ask until the answer is true. Raises TimeoutError."""
    end = time.monotonic() + DEADLINE_S
    while not ask():
        if time.monotonic() > end:
            raise TimeoutError("it did not come to that")
        time.sleep(0.005)


@contextmanager
def gpu(kind: str = "A100") -> Iterator[Gpu]:
    """Simulate a GPU with an MPS control daemon."""
    root = Path(tempfile.mkdtemp(prefix="muxflow-bench-gpu-", dir="/dev/shm"))
    mps = root / "mps"
    mps.mkdir()
    try:
        with SimulatedMachine(root / "gpus") as machine:
            machine.start(kind)
            folders = {"CUDA_MPS_PIPE_DIRECTORY": str(mps), "CUDA_MPS_LOG_DIRECTORY": str(mps)}
            environment = {**os.environ, **machine.environment(), **folders}
            control = str(native_dir() / "nvidia-cuda-mps-control")
            daemon = subprocess.Popen([control, "-f"], env=environment, stdout=subprocess.DEVNULL)
            try:
                until(lambda: _answers(control, environment))
                yield Gpu(machine, mps)
            finally:
                subprocess.run([control], input="quit\n", text=True, env=environment, capture_output=True, check=False)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.wait(timeout=10)
                daemon.kill()
                daemon.wait()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _answers(control: str, environment: Mapping[str, str]) -> bool:
    asked = subprocess.run(
        [control], input="get_server_list\n", text=True, env=environment, capture_output=True, check=False
    )
    return asked.returncode == 0
