"""Online processes under the beacon: what they tell, and that nothing else about them changes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from muxflow_device.pages.layout import RawBeaconPage
from muxflow_device.processes import owner_of, pid_of

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
    """What a slot says."""

    launches: int
    complete: int


def _told(node: Node) -> dict[int, Told]:
    """What online processes say, by their pids."""
    raw = RawBeaconPage.from_buffer_copy(node.device_dir.beacon_page.read_bytes())
    return {pid_of(slot.owner): Told(slot.launches, slot.complete) for slot in raw.slots if slot.owner}


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


def test_a_child_has_a_slot_of_its_own_when_it_uses_the_gpu_and_leaves_its_parents_alone(gpu_node: GpuNode) -> None:
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
    page = node.device_dir.beacon_page
    match how:
        case "missing":
            page.unlink()
        case "empty":
            os.truncate(page, 0)
        case "garbage":
            page.write_bytes(os.urandom(len(page.read_bytes())))
        case "a directory":
            page.unlink()
            page.mkdir()
        case "a FIFO":
            page.unlink()
            os.mkfifo(page)
        case "full":
            raw = RawBeaconPage.from_buffer_copy(page.read_bytes())
            for slot in raw.slots:
                slot.owner = owner_of(os.getpid())
            page.write_bytes(bytes(raw))


@pytest.mark.parametrize("how", ["sound", "missing", "empty", "garbage", "a directory", "a FIFO", "full"])
def test_an_online_program_runs_as_without_us_whatever_the_page_is(gpu_node: GpuNode, how: str) -> None:
    gpu_node.freeze()  # which is for jobs
    _spoil(gpu_node, how)

    def run(extra: dict[str, str]) -> tuple[int, str, str]:
        process = gpu_node.python(_PROGRAM, preload=False, extra=extra)
        output, errors = process.communicate(timeout=30)
        return process.returncode, output, errors

    with_it, without = run(gpu_node.beacon()), run({})
    assert with_it == without
    assert with_it[0] == 7


def test_a_page_that_comes_later_is_used(gpu_node: GpuNode) -> None:
    page = gpu_node.device_dir.beacon_page
    content = page.read_bytes()
    page.unlink()
    process = gpu_node.online(f"""{_BEGIN}
say("began"); input()
while True:
    launch(spin, 1000, where)
    call("cuStreamSynchronize", where)
""")
    assert gpu_node.hear(process) == "began"
    page.write_bytes(content)
    gpu_node.tell(process)
    gpu_node.eventually(lambda: process.pid in _told(gpu_node))


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
    assert [told.launches for told in _told(node).values()] == [1000]  # each took the slot of the one before
