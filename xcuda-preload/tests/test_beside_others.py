"""Under MPS a process that dies with work in flight takes its neighbours down. One that we stop does not."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Build, GpuNode

_KERNELS = Path(__file__).parents[2] / "libs" / "simgpu" / "ptx" / "kernels.ptx"

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


_PASSING = """
import threading
from driver import *
context = begin()
size = 1 << 20
def upload(device, host, where):
    call("cuMemcpyHtoDAsync_v2", device, host, c_size_t(size), where)
def download(device, host, where):
    call("cuMemcpyDtoH_v2", host, device, c_size_t(size))
def take(device, host, where):
    address = c_uint64()
    call("cuMemAllocAsync", byref(address), c_size_t(size), where)
    call("cuMemFreeAsync", address, where)
def mark(device, host, where, event=c_void_p()):
    if not event:
        call("cuEventCreate", byref(event), c_uint(0))
    call("cuEventRecord", event, where)
def work(what):
    call("cuCtxSetCurrent", context)
    host = c_void_p()
    call("cuMemAllocHost_v2", byref(host), c_size_t(size))
    device, where = c_uint64(allocate(size)), stream()
    while True:
        what(device, host, where)
for what in (upload, download, take, mark):
    threading.Thread(target=work, args=[what], daemon=True).start()
say("ready")
work(upload)
"""


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


def _many_threads(node: GpuNode, build: Build, seed: int) -> subprocess.Popen[str]:
    """Starts program_stopped under the library: linked with it where a sanitizer is to see that, else preloaded."""
    name = "xcuda_stopped" if build.sanitized else "program_stopped"
    return node.start(
        build.programs / name, _KERNELS, str(seed),
        preload=not build.sanitized, extra={**build.environment, **node.pages()},
    )  # fmt: skip


def _stop_again_and_again(node: GpuNode, build: Build, times: int) -> None:
    """Every fourth time while the program begins, else when it has made so many launches."""
    neighbour = _neighbour(node)
    moments = random.Random(times)
    logged = 0

    def launched_or_failed(process: subprocess.Popen[str], launches: int) -> bool:
        return node.launches(process.pid) >= launches or process.poll() is not None

    def goes_on(after: int) -> bool:
        return any(operation.pid == neighbour.pid for operation in node.machine.operations(0, after=after))

    for seed in range(times):
        process = _many_threads(node, build, seed)
        if seed % 4 == 3:
            time.sleep(moments.uniform(0, 0.2))
        else:
            node.eventually(partial(launched_or_failed, process, moments.randrange(1, 150)))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert not errors, f"seed {seed}: {errors}"
        assert process.returncode == -signal.SIGTERM, f"seed {seed}"
        operations = node.machine.operations(0, after=logged)
        logged = max((operation.number for operation in operations), default=logged)
        assert not any(operation.cancelled for operation in operations), f"seed {seed}"
        assert [record.faults for record in node.machine.mps(0)] == [0], f"seed {seed}"
    node.eventually(partial(goes_on, logged))
    assert neighbour.poll() is None


@pytest.mark.timeout(300)
def test_threads_that_are_stopped_at_any_moment_do_not_hurt_their_neighbour(mps_node: GpuNode, build: Build) -> None:
    _stop_again_and_again(mps_node, build, 17)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_threads_that_are_stopped_a_thousand_times_do_not_hurt_their_neighbour(mps_node: GpuNode, build: Build) -> None:
    _stop_again_and_again(mps_node, build, 1000)


def test_what_the_gate_lets_pass_is_not_in_flight_at_the_end_either(mps_node: GpuNode) -> None:
    neighbour = _neighbour(mps_node)
    moments = random.Random(7)
    for _ in range(12):
        process = mps_node.python(_PASSING)
        assert mps_node.hear(process) == "ready"
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == -signal.SIGTERM
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
