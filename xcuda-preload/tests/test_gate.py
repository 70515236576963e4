"""The gate: nothing is launched past it while it is closed, and it closes whatever happens to who writes it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from muxflow_decisions.device.gate import GateState, JobPhase
from muxflow_device.pages import JobPage

if TYPE_CHECKING:
    from conftest import GpuNode

_LAUNCHING = """
    from driver import *
    begin()
    [spin] = functions("spin")
    where = stream()
    while True:
        launch(spin, 50_000, where)
"""

_KERNEL_ARGUMENTS = """
value = c_uint64(1000)
parameters = (c_void_p * 1)(ctypes.cast(byref(value), c_void_p))
"""

_CALLS = {
    "a kernel": "launch(spin, 1000, where)",
    "a kernel with a configuration": _KERNEL_ARGUMENTS
    + """
class Config(ctypes.Structure):
    _fields_ = [("sizes", c_uint * 7), ("stream", c_void_p), ("attributes", c_void_p), ("count", c_uint)]
config = Config(sizes=(c_uint * 7)(1, 1, 1, 32, 1, 1, 0), stream=where.value)
call("cuLaunchKernelEx", byref(config), spin, parameters, None)
""",
    "a cooperative kernel": _KERNEL_ARGUMENTS
    + 'call("cuLaunchCooperativeKernel", spin, 1, 1, 1, 32, 1, 1, 0, where, parameters)',
    "a kernel in the thread's own stream": _KERNEL_ARGUMENTS
    + 'call("cuLaunchKernel_ptsz", spin, 1, 1, 1, 32, 1, 1, 0, None, parameters, None)',
    "a graph": 'call("cuGraphLaunch", graph, where)',
    "a memset": 'call("cuMemsetD8_v2", c_uint64(memory), 1, c_size_t(4096))',
    "an asynchronous memset": 'call("cuMemsetD32Async", c_uint64(memory), 1, c_size_t(1024), where)',
    "a copy": 'call("cuMemcpyDtoD_v2", c_uint64(memory), c_uint64(memory + 4096), c_size_t(4096))',
    "an asynchronous copy": (
        'call("cuMemcpyDtoDAsync_v2", c_uint64(memory), c_uint64(memory + 4096), c_size_t(4096), where)'
    ),
}

_TRYING = """
import threading
from driver import *
context = begin()
[spin] = functions("spin")
where = stream()
memory = allocate(1 << 20)
graph, captured = c_void_p(), c_void_p()
call("cuStreamBeginCapture_v2", where, 2)
launch(spin, 1000, where)
call("cuStreamEndCapture", where, byref(captured))
call("cuGraphInstantiateWithFlags", byref(graph), captured, c_uint64(0))

def attempt():
    call("cuCtxSetCurrent", context)
{call}
    call("cuCtxSynchronize")
    say("done")

say("ready")
input()
threading.Thread(target=attempt).start()
"""


@pytest.mark.parametrize("what", _CALLS)
def test_no_work_gets_past_a_frozen_gate(gpu_node: GpuNode, what: str) -> None:
    gpu_node.freeze()
    process = gpu_node.python(_TRYING.format(call=textwrap.indent(_CALLS[what], "    ")))
    assert gpu_node.hear(process) == "ready"
    gpu_node.tell(process)
    gpu_node.eventually(lambda: gpu_node.frozen_ns(process.pid) > 50_000_000)
    assert gpu_node.machine.operations(0) == ()
    gpu_node.open_gate()
    assert gpu_node.hear(process) == "done"
    assert len(gpu_node.machine.operations(0)) >= 1
    assert process.wait() == 0


def test_copies_from_and_to_the_host_pass_a_frozen_gate(gpu_node: GpuNode) -> None:
    gpu_node.freeze()
    told = gpu_node.output_of(
        """
        from driver import *
        begin()
        memory, host, back = allocate(64), ctypes.create_string_buffer(b"abc", 64), ctypes.create_string_buffer(64)
        call("cuMemcpyHtoD_v2", c_uint64(memory), host, c_size_t(64))
        call("cuMemcpyDtoH_v2", back, c_uint64(memory), c_size_t(64))
        print(back.value.decode())
        """
    )
    assert told == "abc\n"


def test_launches_stop_when_the_gate_freezes_and_go_on_when_it_opens(gpu_node: GpuNode) -> None:
    process = gpu_node.python(_LAUNCHING)
    gpu_node.goes_on(process.pid)
    gpu_node.freeze()
    gpu_node.stands_still(process.pid)
    gpu_node.open_gate()
    gpu_node.goes_on(process.pid)


def test_a_job_that_is_frozen_by_its_own_control_stands_still(gpu_node: GpuNode) -> None:
    process = gpu_node.python(_LAUNCHING)
    gpu_node.goes_on(process.pid)
    gpu_node.order(GateState.FROZEN, JobPhase.RUN)
    gpu_node.stands_still(process.pid)


def test_when_the_monitor_dies_launches_stop_and_go_on_with_the_next_one(gpu_node: GpuNode) -> None:
    process = gpu_node.python(_LAUNCHING)
    gpu_node.goes_on(process.pid)
    gpu_node.stop_heart()
    gpu_node.stands_still(process.pid)
    gpu_node.start_heart()
    gpu_node.goes_on(process.pid)


def test_a_device_that_trickles_lets_only_a_job_pass_that_is_told_to_trickle(gpu_node: GpuNode) -> None:
    process = gpu_node.python(_LAUNCHING)
    gpu_node.goes_on(process.pid)
    gpu_node.trickle()
    gpu_node.stands_still(process.pid)
    gpu_node.order(GateState.TRICKLE, JobPhase.CHECKPOINT, budget_permille=50)
    gpu_node.goes_on(process.pid)
    gpu_node.freeze()
    gpu_node.stands_still(process.pid)


def test_a_job_whose_pages_are_missing_waits_for_them(bare_gpu_node: GpuNode) -> None:
    process = bare_gpu_node.python(_LAUNCHING + "        say('launched')\n")
    bare_gpu_node.eventually(lambda: bare_gpu_node.machine.clients(0))
    bare_gpu_node.begin_job()
    assert bare_gpu_node.hear(process) == "launched"
    bare_gpu_node.goes_on(process.pid)


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\xff" * 4096])
def test_a_job_whose_control_page_is_garbage_launches_nothing(bare_gpu_node: GpuNode, content: bytes) -> None:
    bare_gpu_node.job_dir.create()
    bare_gpu_node.job_dir.control_page.write_bytes(content)
    JobPage.create(bare_gpu_node.job_dir, gpu="GPU-0")
    process = bare_gpu_node.python(_LAUNCHING)
    page = JobPage(bare_gpu_node.job_dir)
    bare_gpu_node.eventually(lambda: any(slot.frozen_ns > 100_000_000 for slot in page.read().processes))
    page.close()
    assert bare_gpu_node.machine.operations(0) == ()
    process.kill()


def test_a_job_page_that_is_truncated_or_filled_with_garbage_does_no_harm(gpu_node: GpuNode) -> None:
    process = gpu_node.python(_LAUNCHING)
    gpu_node.goes_on(process.pid)
    before = gpu_node.machine.device(0).operations
    page = gpu_node.job_dir.job_page
    size = page.stat().st_size
    with page.open("r+b") as file:
        file.truncate(100)
        gpu_node.eventually(lambda: gpu_node.machine.device(0).operations > before + 100)
        file.seek(0)
        file.write(b"\xa5" * size)
        file.flush()
        gpu_node.eventually(lambda: gpu_node.machine.device(0).operations > before + 200)
    assert process.poll() is None


def test_a_program_that_is_told_to_be_a_jobs_but_not_which_launches_nothing(gpu_node: GpuNode, library: Path) -> None:
    process = gpu_node.start(
        sys.executable, "-c", textwrap.dedent(_LAUNCHING), preload=False,
        extra={
            "LD_PRELOAD": str(library),
            "XCUDA_MODE": "offline",
            "XCUDA_LOG": "stderr",
            "PYTHONPATH": str(Path(__file__).parent / "programs"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )  # fmt: skip
    assert process.stderr is not None
    assert "frozen: no page" in process.stderr.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    assert gpu_node.machine.operations(0) == ()
