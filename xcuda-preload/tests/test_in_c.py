"""The tests in C: parts that only compute, and threads on the stub driver; plain and under sanitizers."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

_ROOM = Path(__file__).parents[1]

_SUPPRESSIONS = _ROOM / "tests" / "thread.supp"
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",  # the leak detector stops threads by ptrace, which not every machine allows
    "TSAN_OPTIONS": f"suppressions={_SUPPRESSIONS}:halt_on_error=1",
}


@pytest.fixture(params=["", "address,undefined", "thread"], ids=["plain", "asan+ubsan", "tsan"])
def built(request: pytest.FixtureRequest) -> Path:
    """Directory of the programs, built in one of the ways."""
    (_ROOM / "build").mkdir(exist_ok=True)
    with (_ROOM / "build" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            ["make", "--silent", "-C", str(_ROOM), "tests", f"SANITIZE={request.param}"], check=True, timeout=300
        )
    return _ROOM / "build" / (request.param.replace(",", "+") or "plain") / "tests"


def _run(built: Path, program: str, directory: Path) -> None:
    environment = {
        **os.environ,
        **_OPTIONS,
        "LD_LIBRARY_PATH": str(built),
        "XCUDA_DEVICE_DIR": str(directory),
        "XCUDA_JOB_DIR": str(directory),
    }
    done = subprocess.run([built / program], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.timeout(300)
def test_the_parts_that_only_compute_are_right(built: Path, tmp_path: Path) -> None:
    _run(built, "xcuda_units", tmp_path)


@pytest.mark.timeout(300)
def test_threads_that_launch_and_allocate_do_not_get_into_each_others_way(built: Path, tmp_path: Path) -> None:
    _run(built, "xcuda_threads", tmp_path)
