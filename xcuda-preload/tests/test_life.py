"""How the library lives in a process: before main, in threads that come and go, in children, after dlclose."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import GpuNode

_BLOCKED = [number for number in signal.Signals if number not in {signal.SIGKILL, signal.SIGSTOP}]


def _warden(pid: int) -> Path | None:
    """Where the kernel shows the library's thread in a process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == "xcuda":
            return task
    return None


def _handles_no_signal(pid: int) -> bool:
    task = _warden(pid)
    assert task is not None
    [mask] = [line for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk:")]
    blocked = int(mask.split()[1], 16)
    return all(blocked >> (number - 1) & 1 for number in _BLOCKED)


def test_the_librarys_thread_takes_no_signal_and_is_there_again_in_a_child_that_uses_cuda(gpu_node: GpuNode) -> None:
    process = gpu_node.python(
        """
        from driver import *
        result_of("cuCtxSynchronize")  # the driver itself is not for use in a child when it has been in use before
        say(os.getpid())
        sys.stdin.readline()
        child = os.fork()
        if child == 0:
            say(os.getpid())
            sys.stdin.readline()
            begin()
            [spin] = functions("spin")
            launch(spin, 1000)
            call("cuCtxSynchronize")
            say("used")
            sys.stdin.readline()
            os._exit(0)
        say("over", os.waitpid(child, 0)[1])
        """
    )
    assert _handles_no_signal(int(gpu_node.hear(process)))
    gpu_node.tell(process)
    child = int(gpu_node.hear(process))
    assert _warden(child) is None
    gpu_node.tell(process)
    assert gpu_node.hear(process) == "used"
    assert _handles_no_signal(child)
    gpu_node.slot_that(child, lambda slot: slot.launches == 1)
    gpu_node.tell(process)
    assert gpu_node.hear(process) == "over 0"
    assert _warden(process.pid) is not None
    assert process.wait(timeout=30) == 0


def test_a_library_that_launches_before_main_and_after_it_is_gated(
    gpu_node: GpuNode, library: Path, programs: Path
) -> None:
    gpu_node.freeze()
    process = gpu_node.start("true", extra={"LD_PRELOAD": f"{library}:{programs / 'libearly.so'}"})
    gpu_node.eventually(lambda: gpu_node.frozen_ns(process.pid) > 20_000_000)
    assert gpu_node.launches(process.pid) == 0
    gpu_node.open_gate()
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0
    kernels = [operation for operation in gpu_node.machine.operations(0) if operation.pid == process.pid]
    assert len(kernels) == 2


def test_a_thread_that_is_cancelled_at_a_frozen_gate_makes_its_launch_first(
    gpu_node: GpuNode, conformance: Path
) -> None:
    """A launch is no place where a thread may be cancelled, with the library as without it."""
    gpu_node.freeze()
    process = gpu_node.start(conformance / "threads", "cancelled")
    gpu_node.eventually(lambda: gpu_node.frozen_ns(process.pid) > 50_000_000)
    gpu_node.open_gate(budget_permille=700, window_us=500)
    assert process.communicate(timeout=30) == ("1\n", "")
    assert process.returncode == 0


@pytest.mark.timeout(120)
def test_ten_thousand_threads_leave_nothing_behind(gpu_node: GpuNode, conformance: Path) -> None:
    status, output, errors = gpu_node.run(conformance / "threads", "ten-thousand")
    assert (status, output, errors) == (0, "5000\n10000\n1\n", "")


def test_a_library_that_was_opened_and_is_closed_stays_where_it_is(gpu_node: GpuNode, library: Path) -> None:
    """Its thread runs in it, and the driver has been told of functions in it."""
    process = gpu_node.python(
        f"""
        import _ctypes
        from driver import *
        begin()
        opened, driver = ctypes.CDLL({str(library)!r}), ctypes.CDLL("libcuda.so.1")
        address = c_uint64()
        say(opened.cuMemAlloc_v2(byref(address), c_size_t(64)))
        _ctypes.dlclose(opened._handle)
        _ctypes.dlclose(driver._handle)
        say(sum("libxcuda.so" in line for line in open("/proc/self/maps")) > 0)
        sys.stdin.readline()
        call("cuMemFree_v2", address)
        say("freed")
        """,
        extra={"LD_PRELOAD": ""},
    )
    assert gpu_node.hear(process) == "0"
    assert gpu_node.hear(process) == "True"
    gpu_node.slot_that(process.pid, lambda slot: slot.memory_bytes >= 64)
    gpu_node.tell(process)
    assert process.communicate(timeout=30) == ("freed\n", "")
    assert process.returncode == 0
