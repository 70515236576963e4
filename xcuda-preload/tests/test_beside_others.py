"""Under MPS a process that dies with work in flight takes its neighbours down. One that we stop does not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from muxflow_simgpu import native_dir

if TYPE_CHECKING:
    from conftest import GpuNode

_CONTROL = "nvidia-cuda-mps-control"

_NEIGHBOUR = """
from driver import *
begin()
[spin] = functions("spin")
where = stream()
say("ready")
while True:
    result = launch_result(spin, 200_000, where) or result_of("cuStreamSynchronize", where)
    if result:
        say("lost", result)
        break
"""

_LAUNCHING = """
from driver import *
context = begin()
spin, = functions("spin")
where = stream()
say("ready")
i = 0
while True:
    launch(spin, 100_000 + i % 5 * 300_000, where, grid=i % 5 + 1)
    i += 1
"""


@pytest.fixture
def mps_node(gpu_node: GpuNode) -> Iterator[GpuNode]:
    """A node whose GPU is shared through an MPS control daemon."""
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/dev/shm") as folder:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        environment = {**os.environ, **gpu_node.machine.environment(), **variables}
        daemon = subprocess.Popen([native_dir() / _CONTROL, "-f"], env=environment, stdout=subprocess.DEVNULL)

        def tell(command: str) -> int:
            return subprocess.run(
                [native_dir() / _CONTROL],
                input=command + "\n", env=environment, text=True, capture_output=True, timeout=20, check=False,
            ).returncode  # fmt: skip

        gpu_node.eventually(lambda: tell("get_server_list") == 0)
        gpu_node.environment |= variables
        yield gpu_node
        gpu_node.close()
        tell("quit -t 0")
        daemon.wait(timeout=20)


def _neighbour(node: GpuNode) -> subprocess.Popen[str]:
    process = node.python(_NEIGHBOUR, preload=False)
    assert node.hear(process) == "ready"
    return process


def _offline(node: GpuNode) -> subprocess.Popen[str]:
    process = node.python(_LAUNCHING)
    assert node.hear(process) == "ready"
    node.goes_on(process.pid, 5)
    return process


def test_a_job_that_is_stopped_at_any_moment_does_not_hurt_its_neighbour(mps_node: GpuNode) -> None:
    neighbour = _neighbour(mps_node)
    moments = random.Random(5)
    for _ in range(12):
        process = _offline(mps_node)
        mps_node.goes_on(process.pid, moments.randrange(1, 30))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM
    assert neighbour.poll() is None
    assert [record.faults for record in mps_node.machine.mps(0)] == [0]


def test_a_job_that_ends_by_itself_with_work_in_flight_does_not_hurt_its_neighbour(mps_node: GpuNode) -> None:
    neighbour = _neighbour(mps_node)
    for _ in range(3):
        process = mps_node.python(
            "from driver import *\nbegin()\n[spin] = functions('spin')\nwhere = stream()\n"
            "for _ in range(3):\n    launch(spin, 5_000_000, where)\n"
        )
        assert process.wait(timeout=30) == 0
    assert neighbour.poll() is None
    assert [record.faults for record in mps_node.machine.mps(0)] == [0]


def test_a_job_that_is_killed_with_work_in_flight_does(mps_node: GpuNode) -> None:
    """What the tests above would see if it were not for the drain."""
    neighbour = _neighbour(mps_node)
    process = mps_node.python(_LAUNCHING.replace("100_000", "300_000_000"))
    assert mps_node.hear(process) == "ready"
    mps_node.slot_that(process.pid, lambda slot: slot.inflight)
    process.kill()
    process.wait()
    assert mps_node.hear(neighbour).startswith("lost")
