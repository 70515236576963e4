"""What the tests of the preload library share: the built parts, and pages of one device and one job."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

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
from muxflow_simgpu import SimulatedMachine, native_dir

ROOM: Final = Path(__file__).parents[1]
GPU: Final = "GPU-00000000-0000-0000-0000-000000000001"
DEADLINE_S: Final = 30.0

T = TypeVar("T")

_BEAT_S: Final = 0.02
_STALE_AFTER_MS: Final = 5_000
_HOLDOFF_US: Final = 500
_MPS_CONTROL: Final = "nvidia-cuda-mps-control"


def make(*arguments: str) -> None:
    """Runs make for this room; workers of one run build one after the other."""
    (ROOM / "build").mkdir(exist_ok=True)
    with (ROOM / "build" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "--silent", "-C", str(ROOM), *arguments], check=True, timeout=300)


@pytest.fixture(scope="session", name="make")
def make_fixture() -> Callable[..., None]:
    """For builds of one module's own."""
    return make


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


class Build(NamedTuple):
    """The C programs in one of the ways in which they are built."""

    programs: Path
    sanitized: bool
    environment: Mapping[str, str]
    """Under which a sanitizer ends a program that it has something to say about."""


@pytest.fixture(scope="session", params=["", "address,undefined", "thread"], ids=["plain", "asan+ubsan", "tsan"])
def build(request: pytest.FixtureRequest) -> Build:
    make("tests", f"SANITIZE={request.param}")
    return Build(
        programs=ROOM / "build" / (request.param.replace(",", "+") or "plain") / "tests",
        sanitized=bool(request.param),
        environment={
            # The leak detector stops threads by ptrace, which not every machine allows.
            "ASAN_OPTIONS": "detect_leaks=0",
            "TSAN_OPTIONS": f"suppressions={ROOM / 'tests' / 'thread.supp'}:halt_on_error=1",
        },
    )


class Node:
    """A device and a job on it, as monitor and executor would keep them, and programs under the library."""

    def __init__(self, run: RunDirectory, library: Path, driver: Path) -> None:
        self._library = library
        self._driver = driver
        self._run = run
        self.device_dir = run.device(GPU)
        self.job_dir = run.job(Attempt(tenant="tests", job="job", attempt=1))
        self.device = DevicePageWriter(
            self.device_dir, uuid=GPU, stale_after_ms=_STALE_AFTER_MS, beacon_holdoff_us=_HOLDOFF_US
        )
        self.device_dir.create_beacons()
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

    def begin_job(self, *, quota_bytes: int | None = None, context_bytes: int | None = None, gpu: str = GPU) -> None:
        limits = JobLimits(gpu=gpu, quota_bytes=quota_bytes, context_bytes=context_bytes)
        order = JobOrder(gate=Gate(state=GateState.OPEN, budget_permille=1000, window_us=65_535), phase=JobPhase.RUN)
        self.control = JobControlWriter(self.job_dir, limits, order)
        JobPage.create(self.job_dir, gpu=gpu)
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

    def slot(self, pid: int) -> ProcessSlot | None:
        """What the process of this pid says, or said last; None: it has no slot."""
        usage = self.usage()
        return next((slot for slot in (*usage.processes, *usage.ended) if slot.pid == pid), None)

    def slot_that(self, pid: int, right: Callable[[ProcessSlot], object]) -> ProcessSlot:
        """Waits until what the process says is right, and returns it."""

        def found() -> list[ProcessSlot]:
            slot = self.slot(pid)
            return [slot] if slot is not None and right(slot) else []

        return self.eventually(found)[0]

    def launches(self, pid: int) -> int:
        slot = self.slot(pid)
        return slot.launches if slot else 0

    def frozen_ns(self, pid: int) -> int:
        slot = self.slot(pid)
        return slot.frozen_ns if slot else 0

    def eventually(self, ask: Callable[[], T]) -> T:
        """Asks until the answer is true, and returns it."""
        until = time.monotonic() + DEADLINE_S
        while not (answer := ask()):
            assert time.monotonic() < until, "it did not come to that in time"
            time.sleep(0.005)
        return answer

    def goes_on(self, pid: int, launches: int = 20) -> None:
        """Waits until the process has made so many more launches."""
        before = self.launches(pid)
        self.eventually(lambda: self.launches(pid) >= before + launches)

    def stands_still(self, pid: int) -> None:
        """Waits until the process, which has one thread, has been held at its gate for 100 ms without a break."""

        def stood() -> bool:
            frozen_ns, launches = self.frozen_ns(pid), self.launches(pid)
            self.eventually(lambda: self.frozen_ns(pid) > frozen_ns + 100_000_000)
            slot = self.slot(pid)
            return slot is not None and slot.launches == launches and slot.inflight == 0

        self.eventually(stood)

    def pages(self) -> dict[str, str]:
        """The variables that say where the pages are."""
        return {"XCUDA_DEVICE_DIR": str(self.device_dir.path), "XCUDA_JOB_DIR": str(self.job_dir.path)}

    def environment_of(self, *, preload: bool = True) -> dict[str, str]:
        """The environment of a program of the job."""
        environment = {**os.environ, **self.environment, "LD_LIBRARY_PATH": str(self._driver)}
        if preload:
            environment |= {"LD_PRELOAD": str(self._library), **self.pages()}
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

    def python(
        self, text: str, *, preload: bool = True, extra: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a Python program that may import tests/programs/driver.py."""
        program = "import sys; sys.dont_write_bytecode = True\n" + textwrap.dedent(text)
        path = {"PYTHONPATH": str(ROOM / "tests" / "programs")}
        return self.start(sys.executable, "-c", program, preload=preload, extra={**path, **(extra or {})})

    def beacon(self) -> dict[str, str]:
        """The variables of an online program."""
        return {
            "LD_PRELOAD": str(self._library), "XCUDA_MODE": "beacon", "XCUDA_DEVICE_DIR": str(self.device_dir.path)
        }  # fmt: skip

    def online(self, text: str) -> subprocess.Popen[str]:
        """Starts a Python program that is an online one."""
        return self.python(text, preload=False, extra=self.beacon())

    @staticmethod
    def tell(process: subprocess.Popen[str], line: str = "") -> None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()

    @staticmethod
    def hear(process: subprocess.Popen[str]) -> str:
        """One line of what the program says."""
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def output_of(self, text: str, *, preload: bool = True) -> str:
        """What a Python program says that ends well."""
        process = self.python(text, preload=preload)
        output, errors = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, errors) == (0, "")
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
def bare_node(run_directory: RunDirectory, library: Path, programs: Path) -> Iterator[Node]:
    """A node whose driver is the stub, its gate open, and no job yet."""
    node = Node(run_directory, library, programs)
    node.open_gate()
    yield node
    node.close()


@pytest.fixture
def node(bare_node: Node) -> Node:
    """The same with a job that has no quota."""
    bare_node.begin_job()
    return bare_node


@pytest.fixture
def node_under(run_directory: RunDirectory, library: Path) -> Iterator[Callable[[Path], Node]]:
    """Makes a node whose driver is that in a directory, with a job and a frozen gate."""
    with contextlib.ExitStack() as stack:

        def make_node(driver: Path) -> Node:
            node = Node(run_directory, library, driver)
            stack.callback(node.close)
            node.begin_job()
            node.freeze()
            return node

        yield make_node


class GpuNode(Node):
    """A node whose driver is that of a simulated GPU."""

    def __init__(self, run: RunDirectory, library: Path, machine: SimulatedMachine) -> None:
        super().__init__(run, library, native_dir())
        self.machine = machine
        self.environment = {"MUXFLOW_SIMGPU": str(machine.directory)}


@pytest.fixture(scope="session")
def simulation() -> None:
    """The libraries of the simulated GPU, built."""
    room = ROOM.parent / "libs" / "simgpu"
    (room / "build").mkdir(exist_ok=True)
    with (room / "build" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "--silent", "-C", str(room), "all"], check=True, timeout=300)


@pytest.fixture(scope="session")
def conformance(simulation: None) -> Path:
    """Directory of the C programs of the conformance tests, which are linked with the simulated driver."""
    make("conformance")
    return ROOM / "build" / "plain" / "tests" / "conformance"


@pytest.fixture
def bare_gpu_node(run_directory: RunDirectory, library: Path, programs: Path, simulation: None) -> Iterator[GpuNode]:
    """A node with a simulated T4, its gate open, and no job yet."""
    with SimulatedMachine(run_directory.path / "gpus") as machine:
        machine.start("T4")
        node = GpuNode(run_directory, library, machine)
        node.open_gate()
        yield node
        node.close()


@pytest.fixture
def gpu_node(bare_gpu_node: GpuNode) -> GpuNode:
    """The same with a job that has no quota."""
    bare_gpu_node.begin_job()
    return bare_gpu_node


@pytest.fixture
def mps_node(gpu_node: GpuNode) -> Iterator[GpuNode]:
    """A node whose GPU is shared through an MPS control daemon."""
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/dev/shm") as folder:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        environment = {**os.environ, **gpu_node.machine.environment(), **variables}
        daemon = subprocess.Popen([native_dir() / _MPS_CONTROL, "-f"], env=environment, stdout=subprocess.DEVNULL)

        def tell(command: str) -> int:
            return subprocess.run(
                [native_dir() / _MPS_CONTROL],
                input=command + "\n", env=environment, text=True, capture_output=True, timeout=20, check=False,
            ).returncode  # fmt: skip

        gpu_node.eventually(lambda: tell("get_server_list") == 0)
        gpu_node.environment |= variables
        yield gpu_node
        gpu_node.close()
        tell("quit -t 0")
        daemon.wait(timeout=20)
