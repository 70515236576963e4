"""How programs end by SIGTERM and SIGINT: as without the library, but with nothing in flight."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from muxflow_decisions.device.gate import GateState, JobPhase

if TYPE_CHECKING:
    import subprocess

    from conftest import GpuNode

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_LAUNCHING = """
import signal, threading, time
from driver import *
{before}
context = begin()
[spin] = functions("spin")
where = stream()
{after}
say("ready")
while True:
    launch(spin, 3_000_000, where)
"""

_DEFAULT = "signal.signal(signal.SIGINT, signal.SIG_DFL)"
_HANDLER = """
def handle(number, frame):
    launch(spin, 1000, where)
    call("cuStreamSynchronize", where)
    say("handled", number)
    os._exit(7)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, handle)
"""


def _start(node: GpuNode, *, before: str = "", after: str = "", text: str = _LAUNCHING) -> subprocess.Popen[str]:
    process = node.python(text.format(before=textwrap.dedent(before), after=textwrap.dedent(after)))
    assert node.hear(process) == "ready"
    return process


def _ends_drained(node: GpuNode, process: subprocess.Popen[str]) -> int:
    """The exit status of a process of which the device has finished all that it has ever been given."""
    status = process.wait(timeout=30)
    slot = node.slot(process.pid)
    assert slot is not None
    assert (slot.drained, slot.inflight, slot.memory_bytes) == (True, 0, 0)
    operations = [operation for operation in node.machine.operations(0) if operation.pid == process.pid]
    assert operations
    assert not any(operation.cancelled for operation in operations)
    return status


@pytest.mark.parametrize("number", _SIGNALS)
def test_a_program_without_a_handler_is_drained_and_ends_by_the_signal(
    gpu_node: GpuNode, number: signal.Signals
) -> None:
    process = _start(gpu_node, before=_DEFAULT)
    gpu_node.goes_on(process.pid, 3)
    process.send_signal(number)
    assert _ends_drained(gpu_node, process) == -number


def test_a_program_that_waits_at_a_frozen_gate_ends_by_the_signal(gpu_node: GpuNode) -> None:
    process = _start(gpu_node)
    gpu_node.goes_on(process.pid, 3)
    gpu_node.freeze()
    gpu_node.stands_still(process.pid)
    process.send_signal(signal.SIGTERM)
    assert _ends_drained(gpu_node, process) == -signal.SIGTERM


def test_a_program_whose_threads_all_launch_is_drained(gpu_node: GpuNode) -> None:
    process = _start(
        gpu_node,
        after="""
        def work():
            call("cuCtxSetCurrent", context)
            own = stream()
            while True:
                launch(spin, 700_000, own)
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        """,
    )
    gpu_node.goes_on(process.pid, 20)
    process.send_signal(signal.SIGTERM)
    assert _ends_drained(gpu_node, process) == -signal.SIGTERM


def test_a_second_signal_does_not_cut_the_drain_short(gpu_node: GpuNode) -> None:
    process = _start(gpu_node, before=_DEFAULT, text=_LAUNCHING.replace("3_000_000", "300_000_000"))
    gpu_node.goes_on(process.pid, 1)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert _ends_drained(gpu_node, process) == -signal.SIGTERM


def test_a_kernel_that_waits_for_a_copy_from_the_host_gets_it_during_the_drain(gpu_node: GpuNode) -> None:
    gpu_node.environment["XCUDA_LOG"] = "stderr"
    process = gpu_node.python(
        """
        from driver import *
        begin()
        [wait_for] = functions("wait_for")
        word = allocate(4)
        call("cuMemcpyHtoD_v2", c_uint64(word), bytes(4), c_size_t(4))
        launch(wait_for, word, stream())
        say("ready")
        sys.stdin.readline()
        while True:
            call("cuMemcpyHtoDAsync_v2", c_uint64(word), b"once", c_size_t(4), stream())
        """
    )
    assert gpu_node.hear(process) == "ready"
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while "draining" not in process.stderr.readline():
        assert process.poll() is None
    gpu_node.tell(process)
    assert _ends_drained(gpu_node, process) == -signal.SIGTERM


@pytest.mark.parametrize("ends", [True, False])
def test_a_capture_neither_breaks_nor_is_broken_by_the_drain(gpu_node: GpuNode, ends: bool) -> None:
    gpu_node.environment["XCUDA_LOG"] = "stderr"
    process = gpu_node.python(
        f"""
        import time
        from driver import *
        begin()
        [spin] = functions("spin")
        captured, graph, ready = stream(), c_void_p(), c_void_p()
        launch(spin, 3_000_000_000, stream())
        call("cuStreamBeginCapture_v2", captured, 1)
        say("ready")
        sys.stdin.readline()
        launch(spin, 1000, captured)
        while not {ends}:
            time.sleep(60)
        call("cuStreamEndCapture", captured, byref(graph))
        call("cuGraphInstantiateWithFlags", byref(ready), graph, c_uint64(0))
        say("captured")
        call("cuGraphLaunch", ready, captured)
        """
    )
    assert gpu_node.hear(process) == "ready"
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while "draining" not in process.stderr.readline():
        assert process.poll() is None
    gpu_node.tell(process)
    assert gpu_node.hear(process) == ("captured" if ends else "")
    assert _ends_drained(gpu_node, process) == -signal.SIGTERM


@pytest.mark.parametrize("number", _SIGNALS)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_handler_of_the_programs_own_runs_whenever_it_was_installed(
    gpu_node: GpuNode, number: signal.Signals, moment: str
) -> None:
    process = _start(gpu_node, **{moment: _HANDLER})
    gpu_node.goes_on(process.pid, 3)
    process.send_signal(number)
    assert gpu_node.hear(process) == f"handled {int(number)}"
    assert process.wait(timeout=30) == 7


def test_a_python_program_that_is_held_at_the_gate_runs_its_handler_when_the_gate_trickles(gpu_node: GpuNode) -> None:
    process = _start(gpu_node, after=_HANDLER)
    gpu_node.goes_on(process.pid, 3)
    gpu_node.trickle()
    gpu_node.stands_still(process.pid)
    process.send_signal(signal.SIGTERM)
    gpu_node.order(GateState.TRICKLE, JobPhase.STOP, budget_permille=50)
    assert gpu_node.hear(process) == "handled 15"
    assert process.wait(timeout=30) == 7


_SAVING = """
import signal
from driver import *
file, goes_on = {file!r}, {goes_on}
context = begin()
spin, add = functions("spin", "set")
where, word, steps = stream(), allocate(64), 0
call("cuMemsetD8_v2", c_uint64(word), 0, c_size_t(64))

def save(number, frame):
    launch(add, word, where)
    call("cuStreamSynchronize", where)
    back = c_uint64()
    call("cuMemcpyDtoH_v2", byref(back), c_uint64(word), c_size_t(4))
    with open(file, "w") as out:
        out.write(f"{{back.value}} {{steps}}")
    say("saved")
    if not goes_on:
        sys.exit(0)

signal.signal(signal.SIGUSR2, save)
say("ready")
while True:
    steps += 1
    launch(add, word, where)
"""


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_python_program_that_is_held_at_the_gate_saves_its_state_when_it_is_told_to(
    gpu_node: GpuNode, tmp_path: Path, goes_on: bool
) -> None:
    """The launch that its thread is held in, and those by which it saves, go at a trickle; by a frozen gate none."""
    file = tmp_path / "checkpoint"
    process = gpu_node.python(_SAVING.format(file=str(file), goes_on=goes_on))
    gpu_node.goes_on(process.pid, 20)
    gpu_node.freeze()
    gpu_node.stands_still(process.pid)
    launches = gpu_node.launches(process.pid)
    gpu_node.order(GateState.TRICKLE, JobPhase.CHECKPOINT, budget_permille=50)
    process.send_signal(signal.SIGUSR2)
    gpu_node.stands_still(process.pid)  # the device is in hard overload: nothing trickles
    assert gpu_node.launches(process.pid) == launches
    assert not file.exists()
    gpu_node.trickle()
    assert gpu_node.hear(process) == "ready"
    assert gpu_node.hear(process) == "saved"
    counted, steps = map(int, file.read_text().split())
    assert counted == steps + 1  # all that was launched is in what was saved
    assert steps == launches  # with a memset, and without the launch that was held
    if goes_on:
        gpu_node.goes_on(process.pid, 2)
        process.send_signal(signal.SIGKILL)
    else:
        assert process.wait(timeout=30) == 0


def test_copies_of_a_program_that_saves_its_state_leave_the_bus_alone_as_long_as_they_take(gpu_node: GpuNode) -> None:
    process = gpu_node.python(
        """
        from driver import *
        begin()
        size = 8 << 20
        host, device = ctypes.create_string_buffer(size), c_uint64(allocate(size))
        def copy(times):
            for _ in range(times):
                call("cuMemcpyDtoH_v2", host, device, c_size_t(size))
        copy(1)
        say("ready")
        sys.stdin.readline()
        copy(8)
        """
    )
    assert gpu_node.hear(process) == "ready"
    gpu_node.freeze()
    gpu_node.order(GateState.TRICKLE, JobPhase.CHECKPOINT, budget_permille=50)
    gpu_node.tell(process)
    assert process.communicate(timeout=30) == ("", "")
    copies = [operation for operation in gpu_node.machine.operations(0) if operation.pid == process.pid][1:]
    assert len(copies) == 8
    for before, after in itertools.pairwise(copies):
        assert after.enqueued_ns - before.ended_ns >= before.ended_ns - before.enqueued_ns


def test_a_handler_in_c_runs_while_the_thread_waits_at_the_gate(gpu_node: GpuNode) -> None:
    """faulthandler writes from the handler itself."""
    process = _start(
        gpu_node, before="import faulthandler; faulthandler.register(signal.SIGUSR1, all_threads=False, chain=False)"
    )
    gpu_node.goes_on(process.pid, 3)
    gpu_node.freeze()
    gpu_node.stands_still(process.pid)
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    assert "most recent call first" in process.stderr.readline()


def test_a_keyboard_interrupt_is_pythons_own(gpu_node: GpuNode) -> None:
    process = _start(gpu_node)
    gpu_node.goes_on(process.pid, 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert errors.strip().endswith("KeyboardInterrupt")
    assert _ends_drained(gpu_node, process) == -signal.SIGINT


@pytest.mark.parametrize("way", ["os.kill(os.getpid(), number)", "signal.raise_signal(number)"])
def test_a_program_that_sends_itself_a_signal_does_not_go_on_after_it(gpu_node: GpuNode, way: str) -> None:
    process = gpu_node.python(
        f"""
        import signal
        from driver import *
        begin()
        [spin] = functions("spin")
        launch(spin, 30_000_000)
        number = signal.SIGTERM
        {way}
        say("went on")
        """
    )
    assert process.communicate(timeout=30) == ("", "")
    assert _ends_drained(gpu_node, process) == -signal.SIGTERM


def test_an_ignored_signal_stays_ignored(gpu_node: GpuNode) -> None:
    process = _start(gpu_node, before="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    process.send_signal(signal.SIGTERM)
    gpu_node.goes_on(process.pid, 30)
    process.send_signal(signal.SIGKILL)


def test_the_program_sees_the_dispositions_that_it_has_set(gpu_node: GpuNode) -> None:
    program = """
        import ctypes, signal
        from driver import *
        libc = ctypes.CDLL(None)
        libc.signal.restype = libc.sysv_signal.restype = ctypes.c_void_p
        libc.signal.argtypes = libc.sysv_signal.argtypes = [ctypes.c_int, ctypes.c_void_p]

        class Action(ctypes.Structure):
            _fields_ = [("handler", c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", c_int), ("restorer", c_void_p)]

        def action():
            found = Action()
            libc.sigaction(signal.SIGTERM, None, byref(found))
            return found.handler, found.mask[0], found.flags & ~0x04000000

        print(action())
        begin()
        handler = ctypes.CFUNCTYPE(None, c_int)(lambda number: None)
        address = ctypes.cast(handler, c_void_p).value
        print(action(), signal.getsignal(signal.SIGTERM))
        print(libc.signal(signal.SIGTERM, address), action()[0] == address, action()[1:])
        print(libc.signal(signal.SIGTERM, 0) == address, action())
        print(libc.sysv_signal(signal.SIGTERM, address), action()[0] == address, action()[1:])
        print(libc.sysv_signal(signal.SIGTERM, None) == address, action())
        wanted = Action(flags=0x10000000)
        wanted.mask[0] = 1 << 9
        print(libc.sigaction(signal.SIGTERM, byref(wanted), None), action())
        print(libc.sigaction(signal.SIGKILL, byref(wanted), None), libc.sigaction(99, None, None))
    """
    assert gpu_node.output_of(program) == gpu_node.output_of(program, preload=False)


def test_a_handler_that_works_once_is_followed_by_the_default_and_the_drain(gpu_node: GpuNode) -> None:
    process = _start(
        gpu_node,
        after="""
        libc = ctypes.CDLL(None)
        libc.sysv_signal.argtypes = [c_int, c_void_p]
        once = ctypes.CFUNCTYPE(None, c_int)(lambda number: say("once"))
        libc.sysv_signal(signal.SIGTERM, ctypes.cast(once, c_void_p))
        """,
    )
    gpu_node.goes_on(process.pid, 3)
    process.send_signal(signal.SIGTERM)
    assert gpu_node.hear(process) == "once"
    gpu_node.goes_on(process.pid, 100)  # meanwhile the default is taken over again
    process.send_signal(signal.SIGTERM)
    assert _ends_drained(gpu_node, process) == -signal.SIGTERM


def test_a_child_of_a_program_that_launches_dies_by_a_signal_at_once(gpu_node: GpuNode) -> None:
    told = gpu_node.output_of(
        """
        import os, signal, subprocess, time
        from driver import *
        begin()
        [spin] = functions("spin")
        launch(spin, 1000)
        child = os.fork()
        if child == 0:
            time.sleep(60)
        os.kill(child, signal.SIGTERM)
        print(os.waitpid(child, 0)[1])
        sleeper = subprocess.Popen(["sleep", "60"])
        sleeper.terminate()
        print(sleeper.wait())
        """
    )
    assert told.split() == [str(int(signal.SIGTERM)), str(-signal.SIGTERM)]


def test_a_program_that_ends_with_work_in_flight_is_drained(gpu_node: GpuNode) -> None:
    process = gpu_node.python(
        """
        from driver import *
        begin()
        [spin] = functions("spin")
        where = stream()
        for _ in range(3):
            launch(spin, 20_000_000, where)
        sys.exit(5)
        """
    )
    assert _ends_drained(gpu_node, process) == 5


_IN_THE_DRIVER = """
import signal, threading, time
from driver import *
signal.signal(signal.SIGTERM, lambda *_: None)
context = begin()
[spin] = functions("spin")
memory, legacy = allocate(8), c_void_p(1)

def work():
    call("cuCtxSetCurrent", context)
    for duration_ns in (*[1000] * 6, 400_000_000):
        launch(spin, duration_ns, legacy)
        if duration_ns > 1000:
            launched.set()
        call("cuMemcpy", c_uint64(memory), c_uint64(memory + 4), c_size_t(4))

launched = threading.Event()
threading.Thread(target=work, daemon=True).start()
launched.wait()
time.sleep(0.05)  # if the driver has not got the copy by then, there is less to see
say("ready")
"""


def _longest(node: GpuNode, process: subprocess.Popen[str]) -> int:
    """Of what has ended."""
    operations = [operation for operation in node.machine.operations(0) if operation.pid == process.pid]
    return max(operation.ran_ns for operation in operations)


def test_a_process_of_which_a_thread_is_in_the_driver_is_not_drained(gpu_node: GpuNode) -> None:
    process = _start(gpu_node, text=_IN_THE_DRIVER + "input()")
    gpu_node.freeze()
    gpu_node.order(GateState.FROZEN, JobPhase.STOP_HARD)
    gpu_node.slot_that(process.pid, lambda slot: slot.drained)
    assert _longest(gpu_node, process) >= 400_000_000


def test_a_process_that_ends_waits_for_what_another_thread_has_given_to_the_driver(gpu_node: GpuNode) -> None:
    process = _start(gpu_node, text=_IN_THE_DRIVER + "sys.exit(5)")
    assert _ends_drained(gpu_node, process) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make PID namespaces")
def test_the_first_process_of_a_pid_namespace_ends_as_if_by_the_signal(gpu_node: GpuNode) -> None:
    """The kernel spares it: what is left to do is to end with the status that a shell gives to that."""
    program = "import driver, os, signal; driver.begin(); os.kill(os.getpid(), signal.SIGTERM); os._exit(os.getpid())"
    namespace = ("unshare", "--pid", "--fork", "--kill-child")
    status, _, errors = gpu_node.run(*namespace, "true", preload=False)
    if status != 0:
        pytest.skip(f"no PID namespace here: {errors}")
    path = {"PYTHONPATH": str(Path(__file__).parent / "programs")}
    assert gpu_node.run(*namespace, sys.executable, "-B", "-c", program, extra=path) == (128 + signal.SIGTERM, "", "")


def test_a_copy_of_nothing_is_not_taken_for_the_end_of_what_is_in_flight(gpu_node: GpuNode) -> None:
    process = gpu_node.python(
        """
        from driver import *
        begin()
        [spin] = functions("spin")
        for duration_ns in (*[1000] * 6, 200_000_000):
            call("cuCtxSynchronize")
            launch(spin, duration_ns)
        call("cuMemcpyDtoH_v2", ctypes.create_string_buffer(8), c_uint64(allocate(8)), c_size_t(0))
        """
    )
    assert _ends_drained(gpu_node, process) == 0


def test_who_stops_a_held_job_is_told_when_it_is_drained(gpu_node: GpuNode) -> None:
    process = _start(gpu_node, before="signal.signal(signal.SIGTERM, lambda *_: None)")
    gpu_node.goes_on(process.pid, 3)
    gpu_node.freeze()
    gpu_node.order(GateState.FROZEN, JobPhase.STOP_HARD)
    gpu_node.eventually(lambda: gpu_node.usage().processes and gpu_node.usage().drained)
    gpu_node.order(GateState.OPEN, JobPhase.RUN, budget_permille=1000)
    gpu_node.open_gate()
    gpu_node.goes_on(process.pid)
    assert not gpu_node.usage().drained
