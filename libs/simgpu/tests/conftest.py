"""What the tests of the simulated GPU share: its native parts, built once, and a directory for devices."""

import contextlib
import ctypes
import fcntl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pynvml
import pytest

from muxflow_simgpu import DIR_VARIABLE, SimulatedMachine, native_dir

ROOM = Path(__file__).parents[1]


def _make(*arguments: str) -> None:
    """Runs make for this room; workers of one run build one after the other."""
    (ROOM / "build").mkdir(exist_ok=True)
    with (ROOM / "build" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "--silent", "-C", str(ROOM), *arguments], check=True, timeout=300)


@pytest.fixture(scope="session")
def native() -> Path:
    """Directory of the built libraries and programs."""
    _make("all")
    return ROOM / "muxflow_simgpu" / "native"


@pytest.fixture(scope="session")
def model_programs() -> Path:
    """Directory of the C programs of these tests."""
    _make("tests")
    return ROOM / "build" / "objects" / "tests"


@pytest.fixture
def machine_dir() -> Iterator[Path]:
    """A fresh directory for devices, in memory."""
    with tempfile.TemporaryDirectory(prefix="simgpu-", dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def machine(native: Path, machine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedMachine]:
    """A simulated machine without devices, which libraries in this process would find."""
    monkeypatch.setenv(DIR_VARIABLE, str(machine_dir))
    with SimulatedMachine(machine_dir) as machine:
        yield machine


@pytest.fixture
def nvml(machine: SimulatedMachine) -> Iterator[ModuleType]:
    """`pynvml` over our library, which is loaded before it looks for one; `nvmlInit` is up to the test."""
    ctypes.CDLL(str(native_dir() / "libnvidia-ml.so.1"))
    yield pynvml
    with contextlib.suppress(pynvml.NVMLError):
        while True:
            pynvml.nvmlShutdown()
