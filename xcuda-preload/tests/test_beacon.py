"""Online processes under the beacon: what they tell, and that nothing else about them changes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from muxflow_device.pages import Beacons
from muxflow_device.pages.layout import RawBeaconPage
from muxflow_device.processes import pid_of

if TYPE_CHECKING:
    from conftest import GpuNode, Node

_BEGIN = """
import threading
from driver import *
context = begin()
[spin] = functions("spin")
where, other, event = stream(), stream(), c_void_p()
call("cuEventCreate", byref(event), c_uint(0))
memory, host = allocate(64), ctypes.create_string_buffer(64)
"""

_WAITS = {
    "a stream": 'call("cuStreamSynchronize", where)',
    "a stream that is asked for": 'while result_of("cuStreamQuery", where): pass',
    "the context": 'call("cuCtxSynchronize")',
    "an event": 'call("cuEventSynchronize", event)',
    "an event that is asked for": 'while result_of("cuEventQuery", event): pass',
}


class Told(NamedTuple):
    """What a page says."""

    launches: int
    complete: int


def _told(node: Node) -> dict[int, Told]:
    """What online processes say, by their pids."""
    paths = [path for path in node.device_dir.beacons.iterdir() if not path.name.startswith(".")]
    slots = [RawBeaconPage.from_buffer_copy(path.read_bytes()).slot for path in paths]
    return {pid_of(slot.owner): Told(slot.launches, slot.complete) for slot in slots}


def _child_of(pid: int) -> int:
    """The only one."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def _after(node: Node, process: subprocess.Popen[str], word: str) -> Told:
    """What the process tells when it has said the word."""
    assert node.hear(process) == word
    return _told(node)[process.pid]


@pytest.mark.parametrize("what", _WAITS)
def test_what_the_program_has_waited_for_is_told_to_be_complete(gpu_node: GpuNode, what: str) -> None:
    process = gpu_node.online(f"""{_BEGIN}
for _ in range(3):
    launch(spin, 20_000_000, where)
call("cuEventRecord", event, where)
say("launched"); input()
{_WAITS[what]}
say("waited"); input()
launch(spin, 1000, where)
say("again"); input()
""")
    assert _after(gpu_node, process, "launched") == Told(3, 0)
    gpu_node.tell(process)
    assert _after(gpu_node, process, "waited") == Told(3, 3)
    gpu_node.tell(process)
    assert _after(gpu_node, process, "again") == Told(4, 3)


def test_the_default_stream_is_one_whatever_it_is_called(gpu_node: GpuNode) -> None:
    process = gpu_node.online(f"""{_BEGIN}
launch(spin, 1000, None)
launch(spin, 1000, c_void_p(1))
call("cuStreamSynchronize", c_void_p(1))
say("named"); input()
launch(spin, 1000, None)
call("cuMemcpyDtoH_v2", host, c_uint64(memory), c_size_t(64))
say("copied"); input()
""")
    assert _after(gpu_node, process, "named") == Told(2, 2)
    gpu_node.tell(process)
    assert _after(gpu_node, process, "copied") == Told(3, 3)


def test_a_process_is_idle_when_all_its_streams_are(gpu_node: GpuNode) -> None:
    process = gpu_node.online(f"""{_BEGIN}
launch(spin, 1000, where)
launch(spin, 1000, other)
call("cuStreamSynchronize", where)
say("one"); input()
call("cuStreamSynchronize", other)
say("both"); input()
launch(spin, 1000, where)
call("cuStreamDestroy_v2", where)
say("destroyed"); input()
""")
    assert _after(gpu_node, process, "one") == Told(2, 0)
    gpu_node.tell(process)
    assert _after(gpu_node, process, "both") == Told(2, 2)
    gpu_node.tell(process)
    assert _after(gpu_node, process, "destroyed") == Told(3, 3)


def test_what_was_recorded_before_is_complete_and_what_was_launched_since_is_not(gpu_node: GpuNode) -> None:
    process = gpu_node.online(f"""{_BEGIN}
launch(spin, 1000, where)
call("cuEventRecord", event, where)
launch(spin, 1000, where)
call("cuEventSynchronize", event)
say("recorded"); input()
""")
    assert _after(gpu_node, process, "recorded") == Told(2, 0)


def test_graphs_count_and_what_is_captured_does_not_stay_in_flight(gpu_node: GpuNode) -> None:
    process = gpu_node.online(f"""{_BEGIN}
graph, captured = c_void_p(), c_void_p()
call("cuStreamBeginCapture_v2", where, 2)
launch(spin, 1000, where)
call("cuStreamEndCapture", where, byref(captured))
call("cuGraphInstantiateWithFlags", byref(graph), captured, c_uint64(0))
say("captured"); input()
call("cuGraphLaunch", graph, other)
say("launched"); input()
call("cuStreamSynchronize", other)
say("waited"); input()
""")
    captured = _after(gpu_node, process, "captured")
    assert captured.complete == captured.launches
    gpu_node.tell(process)
    launched = _after(gpu_node, process, "launched")
    assert (launched.launches, launched.complete) == (captured.launches + 1, captured.complete)
    gpu_node.tell(process)
    assert _after(gpu_node, process, "waited") == Told(launched.launches, launched.launches)


def test_no_launch_of_many_threads_and_streams_is_lost(gpu_node: GpuNode) -> None:
    process = gpu_node.online(f"""{_BEGIN}
def work():
    call("cuCtxSetCurrent", context)
    own = [stream() for _ in range(5)]
    for i in range(300):
        launch(spin, 1000, own[i % 5])
        if i % 7 == 0:
            call("cuStreamSynchronize", own[i % 5])
    for each in own:
        call("cuStreamSynchronize", each)
threads = [threading.Thread(target=work) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
say("done"); input()
""")
    assert _after(gpu_node, process, "done") == Told(1200, 1200)


def test_each_thread_waits_for_its_own_stream_of_one_name(gpu_node: GpuNode) -> None:
    process = gpu_node.online(f"""{_BEGIN}
value = c_uint64(1000)
parameters = (c_void_p * 1)(ctypes.cast(byref(value), c_void_p))
def launch_own():
    call("cuCtxSetCurrent", context)
    call("cuLaunchKernel_ptsz", spin, 1, 1, 1, 32, 1, 1, 0, None, parameters, None)
launched, turn = threading.Event(), threading.Event()
def work():
    launch_own()
    launched.set()
    turn.wait()
    call("cuStreamSynchronize_ptsz", None)
thread = threading.Thread(target=work)
thread.start()
launched.wait()
launch_own()
call("cuStreamSynchronize_ptsz", None)
say("one"); input()
turn.set()
thread.join()
say("both"); input()
""")
    assert _after(gpu_node, process, "one").complete == 0
    gpu_node.tell(process)
    assert _after(gpu_node, process, "both") == Told(2, 2)


def test_a_child_has_a_page_of_its_own_when_it_uses_the_gpu_and_leaves_its_parents_alone(gpu_node: GpuNode) -> None:
    process = gpu_node.online("""
        from driver import *
        if os.fork() == 0:
            begin()
            [spin] = functions("spin")
            launch(spin, 1000)
            call("cuCtxSynchronize")
            say("child", os.getpid())
            input()
        begin()
        [spin] = functions("spin")
        for _ in range(5):
            launch(spin, 1000)
        call("cuCtxSynchronize")
        if os.fork() == 0:
            os._exit(0)
        os.waitpid(-1, 0)
        say("parent", os.getpid())
        input()
    """)
    heard = dict(gpu_node.hear(process).split() for _ in range(2))
    told = _told(gpu_node)
    assert (told[int(heard["child"])], told[int(heard["parent"])]) == (Told(1, 1), Told(5, 5))
    assert len(told) == 2


# ---- nothing else changes

_PROGRAM = f"""{_BEGIN}
call("cuMemsetD8_v2", c_uint64(memory), c_uint(65), c_size_t(63))
launch(spin, 1000, where)
print(result_of("cuStreamSynchronize", where), launch_result(c_void_p(), None, where), memory_info())
call("cuMemcpyDtoH_v2", host, c_uint64(memory), c_size_t(63))
print(host.value, len(os.listdir("/proc/self/task")), sorted(os.listdir("/proc/self/fd")))
sys.exit(7)
"""


def _spoil(node: Node, how: str) -> None:
    beacons = node.device_dir.beacons
    if how in {"missing", "a file", "a FIFO", "a link"}:
        beacons.rmdir()
    match how:
        case "a file":
            beacons.touch()
        case "a FIFO":
            os.mkfifo(beacons)
        case "a link":
            beacons.symlink_to("/dev/null")
        case "full of garbage":
            for number in range(200):
                (beacons / f"{number:016x}").write_bytes(os.urandom(192))
            os.mkfifo(beacons / f"{200:016x}")
            (beacons / f"{201:016x}").symlink_to("/dev/zero")


@pytest.mark.parametrize("how", ["sound", "missing", "a file", "a FIFO", "a link", "full of garbage"])
def test_an_online_program_runs_as_without_us_whatever_its_directory_is(gpu_node: GpuNode, how: str) -> None:
    gpu_node.freeze()  # which is for jobs
    _spoil(gpu_node, how)

    def run(extra: dict[str, str]) -> tuple[int, str, str]:
        process = gpu_node.python(_PROGRAM, preload=False, extra=extra)
        output, errors = process.communicate(timeout=30)
        return process.returncode, output, errors

    with_it, without = run(gpu_node.beacon()), run({})
    assert with_it == without
    assert with_it[0] == 7


def test_a_directory_that_comes_later_is_used_and_a_page_that_goes_is_made_anew(gpu_node: GpuNode) -> None:
    gpu_node.device_dir.beacons.rmdir()
    process = gpu_node.online(f"""{_BEGIN}
say("began"); input()
while True:
    launch(spin, 1000, where)
    call("cuStreamSynchronize", where)
""")
    assert gpu_node.hear(process) == "began"
    gpu_node.device_dir.create_beacons()
    gpu_node.tell(process)
    gpu_node.eventually(lambda: process.pid in _told(gpu_node))
    [page] = gpu_node.device_dir.beacons.iterdir()
    page.unlink()
    gpu_node.eventually(lambda: process.pid in _told(gpu_node))
    assert not page.exists()


_IN_A_NAMESPACE = """
import ctypes, os, sys
driver, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
driver.cuCtxSetCurrent(context)
for _ in range(int(sys.argv[1])):
    driver.cuLaunchKernel(ctypes.c_void_p(1000), 1, 1, 1, 1, 1, 1, 0, None, None, None)
print(os.getpid(), flush=True)
input()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make PID namespaces")
def test_processes_of_one_pid_in_two_namespaces_have_a_page_each_and_are_told_apart(node: Node) -> None:
    def online(launches: int) -> subprocess.Popen[str]:
        namespace = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
        return node.start(
            *namespace, sys.executable, "-c", _IN_A_NAMESPACE, str(launches), preload=False, extra=node.beacon()
        )

    one, other = online(3), online(5)
    if (heard := node.hear(one)) == "":
        pytest.skip(f"no PID namespace here: {one.communicate()[1]}")
    assert (heard, node.hear(other)) == ("1", "1")
    beacons = Beacons(node.device_dir)
    view = beacons.read()
    assert (view.launches, len(view.pids)) == (8, 2)
    assert view.pids == {_child_of(one.pid), _child_of(other.pid)}
    one.kill()
    node.eventually(lambda: beacons.read().launches == 5)
    assert beacons.read().pids == {_child_of(other.pid)}
    assert len(list(node.device_dir.beacons.iterdir())) == 1
    beacons.close()


def test_an_online_process_dies_by_a_signal_at_once(gpu_node: GpuNode) -> None:
    process = gpu_node.online(f"""{_BEGIN}
launch(spin, 20_000_000_000, where)
say("launched")
call("cuStreamSynchronize", where)
""")
    assert gpu_node.hear(process) == "launched"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == -signal.SIGTERM


def test_a_job_that_says_it_is_online_is_a_job(gpu_node: GpuNode) -> None:
    gpu_node.freeze()
    process = gpu_node.python(f"{_BEGIN}\nlaunch(spin, 1000, where)\n", extra={"XCUDA_MODE": "beacon"})
    gpu_node.eventually(lambda: gpu_node.frozen_ns(process.pid) > 20_000_000)
    assert _told(gpu_node) == {}


# ---- what it costs


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="instructions are counted by valgrind")
def test_a_launch_costs_at_most_twenty_instructions(node: Node, programs: Path) -> None:
    def instructions(launches: int, extra: dict[str, str]) -> int:
        _, _, errors = node.run(
            "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
            programs / "program_launches", str(launches), "1",
            preload=False, extra=extra,
        )  # fmt: skip
        found = re.search(r"Collected : (\d+)", errors)
        assert found, errors
        return int(found[1])

    def per_launch(extra: dict[str, str]) -> float:
        return (instructions(6000, extra) - instructions(1000, extra)) / 5000

    assert per_launch(node.beacon()) - per_launch({}) <= 20
    assert _told(node) == {}  # each took its page with it
