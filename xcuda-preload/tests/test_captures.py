"""Captures and callbacks: nothing of the library's is in them, and nothing is held up in them."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import GpuNode

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
