"""The same programs under sanitizers: bad accesses, undefined behaviour, leaks, races."""

import os
import subprocess
from pathlib import Path

import pytest

from muxflow_simgpu import SimulatedMachine

ROOM = Path(__file__).parents[1]


def built(sanitize: str) -> tuple[Path, Path]:
    """Directory of the library, and of the programs."""
    folder = "-".join(["sanitized", *sanitize.split(",")])
    out = f"build/{folder}"
    subprocess.run(
        ["make", "--silent", "-C", ROOM, f"SANITIZE={sanitize}", f"OUT={out}", f"{out}/libcuda.so.1", "tests"],
        check=True,
        timeout=280,
    )
    return ROOM / out, ROOM / "build" / "-".join(["objects", *sanitize.split(",")]) / "tests"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("sanitize", ["address,undefined", "thread"])
def test_the_driver_is_clean_under_threads(machine: SimulatedMachine, sanitize: str) -> None:
    library, programs = built(sanitize)
    machine.start("T4")
    environ = {
        **os.environ,
        **machine.environment(),
        "LD_LIBRARY_PATH": str(library),
        "UBSAN_OPTIONS": "halt_on_error=1",
    }
    for seed in range(3):
        done = subprocess.run(
            [programs / "driver_hammer", str(seed), "10"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.timeout(300)
def test_the_model_is_clean() -> None:
    _, programs = built("address,undefined")
    schedules = programs / "model_schedules"
    names = subprocess.run([schedules], capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        done = subprocess.run([schedules, name], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), name
