"""Captures and callbacks: nothing of the library's is in them, and nothing is held up in them."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import GpuNode, Node

_BEGIN = """
import threading
from driver import *
context = begin()
[spin] = functions("spin")
one, other = stream(), stream()
GLOBAL, THREAD_LOCAL, RELAXED = range(3)

def end():
    graph = c_void_p()
    return result_of("cuStreamEndCapture", one, byref(graph)), graph

def nodes(graph):
    count = c_size_t()
    call("cuGraphGetNodes", graph, None, byref(count))
    return count.value
"""


@pytest.mark.parametrize("mode", ["GLOBAL", "THREAD_LOCAL", "RELAXED"])
def test_a_captured_graph_holds_what_was_launched_and_nothing_else(gpu_node: GpuNode, mode: str) -> None:
    program = textwrap.dedent(
        f"""
        for i in range(300):
            launch(spin, 1000, one)
        call("cuStreamBeginCapture_v2", one, {mode})
        for i in range(600):
            launch(spin, 1000 + i % 7, one, grid=i % 7 + 1)
        result, graph = end()
        print(result, nodes(graph))
        ready = c_void_p()
        call("cuGraphInstantiateWithFlags", byref(ready), graph, c_uint64(0))
        for i in range(5):
            call("cuGraphLaunch", ready, one)
        call("cuStreamSynchronize", one)
        """
    )
    assert gpu_node.output_of(_BEGIN + program) == "0 600\n"
    assert len(gpu_node.machine.operations(0)) >= 300 + 5 * 600


def test_other_threads_launch_during_a_capture_and_do_not_break_it(gpu_node: GpuNode) -> None:
    gpu_node.open_gate(budget_permille=700, window_us=500)
    told = gpu_node.output_of(
        _BEGIN
        + """
over = threading.Event()
launched = 0

def go_on():
    global launched
    call("cuCtxSetCurrent", context)
    while not over.is_set():
        launch(spin, 100_000, other, grid=launched % 3 + 1)
        launched += 1

thread = threading.Thread(target=go_on)
thread.start()
whole = 0
for round in range(20):
    before = launched
    call("cuStreamBeginCapture_v2", one, GLOBAL)
    launch(spin, 1000, one)
    while launched < before + 15:
        pass
    launch(spin, 1000, one)
    result, graph = end()
    whole += result == 0 and nodes(graph) == 2
over.set()
thread.join()
call("cuCtxSynchronize")
print(whole)
"""
    )
    assert told == "20\n"


def test_streams_that_are_not_captured_go_on_at_full_speed_during_a_long_capture(gpu_node: GpuNode) -> None:
    """More streams than the window has grants for: each must be looked after while another thread captures."""
    process = gpu_node.python(
        _BEGIN
        + """
streams = [stream() for _ in range(12)]
def work(rounds):
    for _ in range(rounds):
        for where in streams:
            launch(spin, 20_000, where)
work(20)
call("cuCtxSynchronize")
begun, over = threading.Event(), threading.Event()
def capture():
    call("cuCtxSetCurrent", context)
    call("cuStreamBeginCapture_v2", one, GLOBAL)
    begun.set()
    over.wait()
    say(end()[0])
thread = threading.Thread(target=capture)
thread.start()
begun.wait()
say("captures")
sys.stdin.readline()
work(30)
over.set()
thread.join()
"""
    )
    assert gpu_node.hear(process) == "captures"
    before = gpu_node.slot_that(process.pid, lambda slot: slot.launches == 240)
    gpu_node.tell(process)
    assert process.communicate(timeout=30) == ("0\n", "")
    after = gpu_node.slot(process.pid)
    assert after is not None
    assert after.launches == 600
    assert after.throttled_ns < before.throttled_ns + 1_000_000_000  # by turns of 100 ms it would be several seconds


def test_a_stream_that_joins_a_capture_may_have_launches_in_flight(gpu_node: GpuNode) -> None:
    """It is captured from the moment in which it waits for the other one's event."""
    program = (
        _BEGIN
        + """
fork, join = c_void_p(), c_void_p()
for event in (fork, join):
    call("cuEventCreate", byref(event), c_uint(2))
for round in range(30):
    for i in range(5):
        launch(spin, 20_000, other)
    call("cuStreamBeginCapture_v2", one, GLOBAL)
    call("cuEventRecord", fork, one)
    call("cuStreamWaitEvent", other, fork, c_uint(0))
    for i in range(20):
        launch(spin, 1000, other, grid=i + 1)
    call("cuEventRecord", join, other)
    call("cuStreamWaitEvent", one, join, c_uint(0))
    result, graph = end()
    print(result, nodes(graph))
call("cuCtxSynchronize")
"""
    )
    assert gpu_node.output_of(program) == gpu_node.output_of(program, preload=False)


def test_a_launch_in_a_capture_costs_the_question_whether_it_is_in_one_and_no_other_call(node: Node) -> None:
    """The stub driver counts calls that ask, mark or wait. Launches before the capture leave a group open."""
    told = node.output_of(
        """
        from driver import *
        context = begin()
        where, graph = stream(), c_void_p()
        calls = cuda.stub_calls
        kernel = c_void_p(1000)
        for i in range(100):
            launch(kernel, 0, where)
        call("cuCtxSynchronize")
        call("cuStreamBeginCapture_v2", where, 0)
        before = calls()
        for i in range(300):
            launch(c_void_p(1000 + i % 7), 0, where, grid=i % 5 + 1)
        print(calls() - before, result_of("cuStreamEndCapture", where, byref(graph)))
        """
    )
    assert told == "300 0\n"


def test_a_capture_is_not_held_up_at_a_frozen_gate(gpu_node: GpuNode) -> None:
    gpu_node.freeze()
    told = gpu_node.output_of(
        _BEGIN
        + """
call("cuStreamBeginCapture_v2", one, GLOBAL)
for i in range(10):
    launch(spin, 1000, one)
print(end()[0])
"""
    )
    assert told == "0\n"


def test_a_capture_that_the_program_breaks_is_broken_as_without_the_library(gpu_node: GpuNode) -> None:
    program = (
        _BEGIN
        + """
call("cuStreamBeginCapture_v2", one, GLOBAL)
print(result_of("cuStreamSynchronize", one), launch_result(spin, 1000, one), end()[0])
print(launch_result(spin, 1000, one), result_of("cuStreamSynchronize", one))
"""
    )
    assert gpu_node.output_of(program) == gpu_node.output_of(program, preload=False)


def test_a_call_in_a_callback_is_answered_by_the_driver_even_if_the_gate_is_frozen(gpu_node: GpuNode) -> None:
    program = (
        _BEGIN
        + """
results = []
HOST, STREAM = ctypes.CFUNCTYPE(None, c_void_p), ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p)
host = HOST(lambda data: results.append((data, launch_result(spin, 1000, one))))
back = STREAM(lambda where, status, data: results.append((data, status, launch_result(spin, 1000, one))))
call("cuLaunchHostFunc", one, host, c_void_p(5))
call("cuStreamAddCallback", one, back, c_void_p(6), 0)
call("cuStreamSynchronize", one)
print(results)
"""
    )
    gpu_node.freeze()
    assert gpu_node.output_of(program) == gpu_node.output_of(program, preload=False)
