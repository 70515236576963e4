"""Programs whose parts wait for one another: no gate, window or budget, of which they know nothing, locks them up."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess

    from conftest import GpuNode

_BEGIN = """
import sys, threading, time
from driver import *
context = begin()
spin, wait_for, set_word = functions("spin", "wait_for", "set")
one, other = stream(), stream()
HALF = 1 << 20
words = allocate(2 * HALF)
call("cuMemcpyHtoD_v2", c_uint64(words), bytes(2 * HALF), c_size_t(2 * HALF))

def synchronize(where):
    call("cuStreamSynchronize", where)

def thread(work, *arguments):
    def begin_and_work():
        call("cuCtxSetCurrent", context)
        work(*arguments)
    begun = threading.Thread(target=begin_and_work)
    begun.start()
    return begun

def capture():
    graph = c_void_p()
    call("cuStreamBeginCapture_v2", one, 2)
    call("cuStreamEndCapture", one, byref(graph))
    call("cuGraphDestroy", graph)

turn, begun, last = threading.Lock(), 0, HALF // 4

def rank(own, theirs, where):
    global begun
    for step in range(last):
        with turn:
            if step == last:
                break
            begun = max(begun, step + 1)
        launch(spin, 20_000, where)
        launch(set_word, theirs + 4 * step, where)
        launch(wait_for, own + 4 * step, where)
        if step % 8 == 0:
            synchronize(where)
    synchronize(where)

def agree_on_the_last_step():  # of which no rank has begun a later one
    global last
    sys.stdin.readline()
    with turn:
        say(begun)
        last = int(sys.stdin.readline())
"""

_TWO_THREADS = """
ranks = [thread(rank, words, words + HALF, one), thread(rank, words + HALF, words, other)]
agree_on_the_last_step()
for each in ranks:
    each.join()
say("done")
"""

_ONE_OF_TWO_PROCESSES = """
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 64)]
own, theirs = Handle(), c_uint64()
call("cuIpcGetMemHandle", byref(own), c_uint64(words))
say(bytes(own).hex())
other_rank = Handle.from_buffer_copy(bytes.fromhex(sys.stdin.readline()))
call("cuIpcOpenMemHandle_v2", byref(theirs), other_rank, c_uint(1))
sys.stdin.readline()
own_rank = thread(rank, words, theirs.value, one)
agree_on_the_last_step()
own_rank.join()
say("done")
"""


def _start(node: GpuNode, text: str) -> subprocess.Popen[str]:
    return node.python(_BEGIN + textwrap.dedent(text))


def _ends(process: subprocess.Popen[str]) -> None:
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "done\n", "")


def _is_held(node: GpuNode, *processes: subprocess.Popen[str]) -> None:
    """Waits until a thread of one of them has been held at a frozen gate for some time from now on."""
    before_ns = {process.pid: node.frozen_ns(process.pid) for process in processes}
    node.eventually(lambda: any(node.frozen_ns(pid) > ns + 5_000_000 for pid, ns in before_ns.items()))


def _freeze_and_thaw(node: GpuNode, *processes: subprocess.Popen[str]) -> None:
    for budget_permille, window_us in ((1000, 100), (700, 2000)):
        for process in processes:
            node.goes_on(process.pid, 5)
        node.freeze()
        _is_held(node, *processes)  # another one may wait for what that one has not launched
        node.open_gate(budget_permille=budget_permille, window_us=window_us)
    for process in processes:
        node.goes_on(process.pid, 5)
    node.open_gate()


def _end_together(node: GpuNode, *processes: subprocess.Popen[str]) -> None:
    """Ends ranks, however far they have come: each goes on to the step that the first of them has begun."""
    for process in processes:
        node.tell(process)
    last = max(int(node.hear(process)) for process in processes)
    for process in processes:
        node.tell(process, str(last))
    for process in processes:
        _ends(process)


def test_threads_whose_kernels_wait_for_each_other_go_on_after_a_freeze(gpu_node: GpuNode) -> None:
    process = _start(gpu_node, _TWO_THREADS)
    _freeze_and_thaw(gpu_node, process)
    _end_together(gpu_node, process)


def test_processes_whose_kernels_wait_for_each_other_freeze_and_go_on_together(gpu_node: GpuNode) -> None:
    ranks = [_start(gpu_node, _ONE_OF_TWO_PROCESSES) for _ in range(2)]
    handles = [gpu_node.hear(process) for process in ranks]
    for process, handle in zip(ranks, reversed(handles), strict=True):
        gpu_node.tell(process, handle)
    for process in ranks:
        gpu_node.tell(process)
    _freeze_and_thaw(gpu_node, *ranks)
    _end_together(gpu_node, *ranks)


@pytest.mark.parametrize("budget_permille", [1000, 500])
def test_a_kernel_that_waits_for_a_launch_behind_many_others_gets_it(gpu_node: GpuNode, budget_permille: int) -> None:
    """More launches than a lane has groups in flight, and none of them is known, go into the stream that stands."""
    gpu_node.open_gate(budget_permille=budget_permille)
    process = _start(
        gpu_node,
        """
        launch(wait_for, words, one)
        for i in range(10):
            launch(spin, 1000, one, grid=i + 1)
        launch(set_word, words, other)
        call("cuCtxSynchronize")
        say("done")
        """,
    )
    _ends(process)
    assert len([operation for operation in gpu_node.machine.operations(0) if operation.pid == process.pid]) >= 12


def test_a_callback_that_needs_a_lock_of_the_thread_that_launches_gets_it(gpu_node: GpuNode) -> None:
    process = _start(
        gpu_node,
        """
        lock = threading.Lock()
        def take_and_give(data):
            with lock:
                pass
        callback = ctypes.CFUNCTYPE(None, c_void_p)(take_and_give)
        with lock:
            call("cuLaunchHostFunc", one, callback, None)
            for i in range(4):
                launch(spin, 1000, one, grid=i + 1)
        call("cuCtxSynchronize")
        say("done")
        """,
    )
    _ends(process)


_MEANWHILE = {
    "destroys streams": "call('cuStreamDestroy_v2', stream())",
    "captures": "capture()",
}


@pytest.mark.parametrize("what", _MEANWHILE)
def test_a_thread_that_the_driver_keeps_does_not_hold_up_another_that(gpu_node: GpuNode, what: str) -> None:
    """The driver keeps a copy that waits for a kernel; that waits for a launch; and that comes last."""
    process = _start(
        gpu_node,
        f"""
        launch(wait_for, words, c_void_p(1))
        copying = thread(call, "cuMemcpy", c_uint64(words + 4096), c_uint64(words + 8192), c_size_t(4096))
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            {_MEANWHILE[what]}
        launch(set_word, words, other)
        copying.join()
        say("done")
        """,
    )
    _ends(process)


def test_a_lock_held_around_launches_may_be_needed_to_synchronise(gpu_node: GpuNode) -> None:
    process = _start(
        gpu_node,
        """
        lock, over = threading.Lock(), threading.Event()
        def work(where, what):
            while not over.is_set():
                with lock:
                    what(where)
        launching = thread(work, one, lambda where: [launch(spin, 100_000, where) for _ in range(4)])
        waiting = thread(work, one, synchronize)
        sys.stdin.readline()
        over.set()
        launching.join()
        waiting.join()
        say("done")
        """,
    )
    _freeze_and_thaw(gpu_node, process)
    gpu_node.tell(process)
    _ends(process)


def test_a_stream_that_waits_for_an_event_of_another_is_not_held_with_it(gpu_node: GpuNode) -> None:
    """The event is recorded before the launch that is held; once that may go, a wait for what comes behind it ends."""
    process = _start(
        gpu_node,
        """
        before, behind = c_void_p(), c_void_p()
        for event in (before, behind):
            call("cuEventCreate", byref(event), c_uint(2))
        launch(spin, 1000, one)
        call("cuEventRecord", before, one)
        say("ready")
        sys.stdin.readline()
        def launch_and_mark():
            launch(spin, 1000, one)
            call("cuEventRecord", behind, one)
        held = thread(launch_and_mark)
        call("cuStreamWaitEvent", other, before, c_uint(0))
        synchronize(other)
        say("passed")
        held.join()
        call("cuStreamWaitEvent", other, behind, c_uint(0))
        for i in range(10):
            launch(spin, 1000, other, grid=i + 1)
        synchronize(other)
        say("done")
        """,
    )
    assert gpu_node.hear(process) == "ready"
    gpu_node.freeze()
    gpu_node.tell(process)
    assert gpu_node.hear(process) == "passed"
    _is_held(gpu_node, process)
    gpu_node.open_gate(window_us=100)
    _ends(process)


_LAUNCH_BY = {
    "ctypes": "launch(spin, 1000, one)",
    "the driver's bindings": """
from cuda.bindings import driver
kernel, where = driver.CUfunction(spin.value), driver.CUstream(one.value)
driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, where, ((1000,), (c_uint64,)), 0)
""",
}


@pytest.mark.parametrize("way", _LAUNCH_BY)
def test_other_threads_of_a_python_program_go_on_while_one_is_held(gpu_node: GpuNode, way: str) -> None:
    gpu_node.freeze()
    process = gpu_node.python(
        _BEGIN
        + f"held = thread(exec, {_LAUNCH_BY[way]!r}, globals())\n"
        + "for line in sys.stdin:\n    say('heard')\nheld.join()\nsay('done')\n"
    )
    for _ in range(3):
        _is_held(gpu_node, process)
        gpu_node.tell(process)
        assert gpu_node.hear(process) == "heard"
    assert gpu_node.launches(process.pid) == 0
    gpu_node.open_gate()
    _ends(process)
