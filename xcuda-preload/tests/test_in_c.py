"""The tests in C: parts that only compute, and threads on the stub driver; plain and under sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Build


def _run(build: Build, program: str, directory: Path, *, online: bool = False, log: Path | None = None) -> None:
    environment = {
        **os.environ,
        **build.environment,
        "LD_LIBRARY_PATH": str(build.programs),
        "XCUDA_DEVICE_DIR": str(directory),
        **({"XCUDA_LOG": str(log)} if log else {}),
        **({"XCUDA_MODE": "beacon"} if online else {"XCUDA_JOB_DIR": str(directory)}),
    }
    done = subprocess.run(
        [build.programs / program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.timeout(300)
def test_the_parts_that_only_compute_are_right(build: Build, tmp_path: Path) -> None:
    _run(build, "xcuda_units", tmp_path)


@pytest.mark.timeout(300)
def test_threads_that_launch_and_allocate_do_not_get_into_each_others_way(build: Build, tmp_path: Path) -> None:
    _run(build, "xcuda_threads", tmp_path)


@pytest.mark.timeout(300)
def test_threads_of_an_online_process_are_counted_together(build: Build, tmp_path: Path) -> None:
    _run(build, "xcuda_beacon", tmp_path, online=True)


@pytest.mark.timeout(300)
def test_no_more_than_ten_lines_a_second_are_logged(build: Build, tmp_path: Path) -> None:
    """Three hundred are wanted within one second, or while one becomes the next."""
    log = tmp_path / "log"
    _run(build, "xcuda_log", tmp_path, log=log)
    lines = log.read_text().splitlines()
    assert 10 <= len(lines) <= 20
    assert lines[0].endswith(": line 0")
