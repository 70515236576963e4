"""Graphs that allocate count for as long as they exist, whether nodes were added or captured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import GpuNode

_MIB = 1 << 20

_BEGIN = """
from driver import *
context = begin()
MIB = 1 << 20
where = stream()

class Alloc(ctypes.Structure):
    _fields_ = [
        ("type", c_int), ("handles", c_int), ("place", c_int), ("device", c_int), ("rest", c_uint64 * 9),
        ("accesses", c_void_p), ("access_count", c_size_t), ("bytes", c_size_t), ("address", c_uint64),
    ]

class Params(ctypes.Structure):
    _fields_ = [("type", c_int), ("reserved", c_int * 3), ("alloc", Alloc), ("end", c_uint64 * 15)]

assert ctypes.sizeof(Params) == 256

def by_node(graph, n, after):
    node, alloc = c_void_p(), Alloc(type=1, place=1, bytes=n)
    call("cuGraphAddMemAllocNode", byref(node), graph, byref(after), c_size_t(bool(after)), byref(alloc))
    return node, c_uint64(alloc.address)

def by_any_node(graph, n, after):
    node, params = c_void_p(), Params(type=10, alloc=Alloc(type=1, place=1, bytes=n))
    call("cuGraphAddNode_v2", byref(node), graph, byref(after), None, c_size_t(bool(after)), byref(params))
    return node, c_uint64(params.alloc.address)

def added(*sizes, add=by_node):
    '''Allocations one after the other; a size below 0 frees the last one.'''
    graph, node, address = c_void_p(), c_void_p(), c_uint64()
    call("cuGraphCreate", byref(graph), 0)
    for n in sizes:
        before = node
        if n > 0:
            node, address = add(graph, n * MIB, before)
        else:
            node = c_void_p()
            call("cuGraphAddMemFreeNode", byref(node), graph, byref(before), c_size_t(1), address)
    return graph

def captured(*sizes):
    graph, address = c_void_p(), c_uint64()
    call("cuStreamBeginCapture_v2", where, 0)
    for n in sizes:
        if n > 0:
            call("cuMemAllocAsync", byref(address), c_size_t(n * MIB), where)
        else:
            call("cuMemFreeAsync", address, where)
    call("cuStreamEndCapture", where, byref(graph))
    return graph

def instantiate(graph):
    executable = c_void_p()
    return result_of("cuGraphInstantiateWithFlags", byref(executable), graph, c_uint64(0)), executable

def run(executable):
    call("cuGraphLaunch", executable, where)
    call("cuStreamSynchronize", where)

def left():
    return memory_info()[0] // MIB
"""


@pytest.fixture
def job(bare_gpu_node: GpuNode) -> GpuNode:
    """A job with a quota of 1,000 MiB, of which a context takes 300."""
    bare_gpu_node.begin_job(quota_bytes=1000 * _MIB, context_bytes=300 * _MIB)
    return bare_gpu_node


_MADE = ["added(*sizes)", "added(*sizes, add=by_any_node)", "captured(*sizes)"]


@pytest.mark.parametrize("made", _MADE)
def test_a_graph_counts_what_its_nodes_have_at_a_time_until_the_driver_lets_go_of_it(job: GpuNode, made: str) -> None:
    told = job.output_of(
        _BEGIN
        + f"""
def make(*sizes):
    return instantiate({made})

result, executable = make(400, -1, 300, -1)
print(result, left())
run(executable)
run(executable)
print(left(), make(301)[0])
call("cuGraphExecDestroy", executable)
print(left())
call("cuDeviceGraphMemTrim", 0)
print(left(), make(701)[0], make(400, 300)[0])
"""
    )
    assert told.split() == ["0", "300", "300", "2", "300", "700", "2", "0"]


def test_a_graph_counts_beside_more_pools_than_are_kept_count_of(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
pool_properties = (c_uint64 * 11)(1, 1)
for _ in range(300):
    pool, address = c_void_p(), c_uint64()
    call("cuMemPoolCreate", byref(pool), byref(pool_properties))
    call("cuMemAllocFromPoolAsync", byref(address), c_size_t(MIB), pool, where)
print(left(), instantiate(added(401))[0])
result, executable = instantiate(added(300))
print(result, left(), instantiate(added(200))[0])
call("cuGraphExecDestroy", executable)
print(left())
"""
    )
    assert told.split() == ["400", "2", "0", "100", "2", "400"]


def test_memory_that_graphs_left_behind_is_used_again_without_being_charged_again(job: GpuNode) -> None:
    told = job.output_of(
        _BEGIN
        + """
for _ in range(5):
    result, executable = instantiate(added(600))
    run(executable)
    call("cuGraphExecDestroy", executable)
    print(result, left())
"""
    )
    assert told.split() == ["0", "100"] * 5


_INSTANTIATE = {
    "cuGraphInstantiate": "None, None, c_size_t(0)",
    "cuGraphInstantiate_v2": "None, None, c_size_t(0)",
    "cuGraphInstantiateWithFlags": "c_uint64(0)",
    "cuGraphInstantiateWithParams": "(c_uint64 * 4)()",
}


@pytest.mark.parametrize("call", _INSTANTIATE)
def test_every_way_to_instantiate_counts(job: GpuNode, call: str) -> None:
    told = job.output_of(
        _BEGIN
        + f"""
for n in (701, 500, 201):
    print(result_of("{call}", byref(c_void_p()), added(n), {_INSTANTIATE[call]}))
print(result_of("{call}", byref(c_void_p()), None, {_INSTANTIATE[call]}), left())
"""
    )
    assert told.split() == ["2", "0", "2", "1", "200"]


def test_a_capture_that_allocates_is_not_broken(job: GpuNode) -> None:
    """In global mode a call of ours that is not allowed would invalidate it."""
    program = (
        _BEGIN
        + """
other = stream()
graph, address, plain = c_void_p(), c_uint64(), c_uint64()
call("cuMemAllocAsync", byref(plain), c_size_t(MIB), other)
call("cuStreamBeginCapture_v2", where, 0)
call("cuMemAllocAsync", byref(address), c_size_t(MIB), where)
for _ in range(3):
    print(result_of("cuMemAllocAsync", byref(plain), c_size_t(MIB), other))
    print(result_of("cuMemFreeAsync", plain, other))
print(result_of("cuStreamEndCapture", where, byref(graph)))
print(instantiate(graph)[0])
"""
    )
    assert job.output_of(program).split() == ["0"] * 8
    assert job.output_of(program, preload=False).split() == ["0"] * 8
