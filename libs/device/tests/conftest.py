"""What the tests of this room share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxflow.contracts import Attempt
from muxflow_device.rundir import DeviceDirectory, JobDirectory, RunDirectory


@pytest.fixture
def uuid() -> str:
    return "GPU-6f3c2a61-0000-4000-8000-000000000001"


@pytest.fixture
def run() -> Iterator[RunDirectory]:
    """A run directory on a tmpfs, as in life."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield RunDirectory(Path(path) / "run")


@pytest.fixture
def directory(run: RunDirectory, uuid: str) -> DeviceDirectory:
    return run.device(uuid)


@pytest.fixture
def job(run: RunDirectory) -> JobDirectory:
    return run.job(Attempt(tenant="default", job="train", attempt=1))
