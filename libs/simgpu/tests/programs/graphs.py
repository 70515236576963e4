"""Graphs that are built node by node, or captured: their order, their branches, their changes."""

import ctypes
from ctypes import CFUNCTYPE, byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

from cuda_calls import (
    MS,
    US,
    WORK,
    Gate,
    Word,
    Work,
    allocate,
    call,
    code,
    context,
    elapsed_ms,
    event,
    from_device,
    function,
    launch,
    made,
    module,
    nanoseconds,
    near,
    record,
    stream,
    synchronize,
    wait,
)


class _Kernel(ctypes.Structure):
    values: tuple[Any, ...]
    _fields_ = [
        ("function", c_void_p),
        ("grid", c_uint32 * 3),
        ("block", c_uint32 * 3),
        ("shared", c_uint32),
        ("parameters", ctypes.POINTER(c_void_p)),
        ("extra", c_void_p),
        ("kernel", c_void_p),
        ("context", c_void_p),
    ]


class _Fill(ctypes.Structure):
    _fields_ = [
        ("address", c_uint64),
        ("pitch", c_size_t),
        ("value", c_uint32),
        ("element", c_uint32),
        ("width", c_size_t),
        ("height", c_size_t),
    ]


def _parameters(kernel: int, *values: Any) -> _Kernel:
    pointers = (c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    one = (c_uint32 * 3)(1, 1, 1)
    made_of = _Kernel(function=kernel, grid=one, block=one, parameters=pointers)
    made_of.values = values  # which only addresses would not keep
    return made_of


def _graph() -> int:
    return made("cuGraphCreate", 0)


def _after(*nodes: int) -> tuple[Any, c_size_t]:
    return (c_void_p * max(1, len(nodes)))(*nodes), c_size_t(len(nodes))


def _kernel_node(graph: int, parameters: _Kernel, *after: int) -> int:
    return made("cuGraphAddKernelNode_v2", graph, *_after(*after), byref(parameters))


def _executable(graph: int) -> int:
    return made("cuGraphInstantiateWithFlags", graph, c_uint64(0))


def _timed(executable: int, on: int) -> float:
    """How long a launch of the graph takes, in milliseconds of the device."""
    gate = Gate()
    gate.hold(on)
    call("cuGraphLaunch", c_void_p(executable), c_void_p(on))
    end = record(event(), on)
    gate.open()
    synchronize(on)
    return elapsed_ms(gate.event, end)


def _work(duration_ns: float, sm_pct: int = 10) -> _Kernel:
    kernel = function("work", module(WORK))
    return _parameters(kernel, nanoseconds(duration_ns), c_uint32(sm_pct), c_uint32(0))


def nodes_run_in_the_order_of_their_dependencies() -> None:
    context()
    graph, address = _graph(), allocate(64)
    first = made("cuGraphAddMemsetNode", graph, *_after(), byref(_Fill(address, 0, 1, 4, 16, 1)), None)
    second = made("cuGraphAddMemsetNode", graph, *_after(first), byref(_Fill(address, 0, 2, 4, 8, 1)), None)
    made("cuGraphAddMemsetNode", graph, *_after(second), byref(_Fill(address, 0, 3, 4, 4, 1)), None)
    one = stream()
    call("cuGraphLaunch", c_void_p(_executable(graph)), c_void_p(one))
    synchronize(one)
    values = list((c_uint32 * 16).from_buffer_copy(from_device(address, 64)))
    assert values == [3] * 4 + [2] * 4 + [1] * 8


def branches_run_side_by_side_and_meet_again() -> None:
    """5 ms, then 10 and 20 ms beside each other, then 3 ms."""
    context()
    graph = _graph()
    head = _kernel_node(graph, _work(5 * MS))
    left = _kernel_node(graph, _work(10 * MS), head)
    right = _kernel_node(graph, _work(20 * MS), head)
    _kernel_node(graph, _work(3 * MS), left, right)
    assert near(_timed(_executable(graph), stream()), 28)


def roots_begin_together_after_what_the_stream_did_before() -> None:
    context()
    graph, one, work = _graph(), stream(), Work()
    for _ in range(3):
        _kernel_node(graph, _work(4 * MS))
    executable = _executable(graph)
    gate = Gate()
    gate.hold(one)
    work(one, 2 * MS, sm_pct=10)
    call("cuGraphLaunch", c_void_p(executable), c_void_p(one))
    work(one, 1 * MS, sm_pct=10)
    end = record(event(), one)
    gate.open()
    synchronize(one)
    assert near(elapsed_ms(gate.event, end), 7)


def a_graph_does_not_run_beside_itself() -> None:
    context()
    graph, one, two = _graph(), stream(), stream()
    _kernel_node(graph, _work(5 * MS))
    executable = _executable(graph)
    gate = Gate()
    gate.hold(one, two)
    for on in (one, two):
        call("cuGraphLaunch", c_void_p(executable), c_void_p(on))
    end = record(event(), two)
    gate.open()
    synchronize(two)
    assert near(elapsed_ms(gate.event, end), 10)


def captured_forks_become_branches() -> None:
    context()
    one, two, work = stream(), stream(), Work()
    call("cuStreamBeginCapture_v2", c_void_p(one), 0)
    wait(record(event(), one), two)
    work(one, 6 * MS, sm_pct=10)
    work(two, 8 * MS, sm_pct=10)
    wait(record(event(), two), one)
    work(one, 1 * MS, sm_pct=10)
    graph = c_void_p()
    call("cuStreamEndCapture", c_void_p(one), byref(graph))
    assert near(_timed(_executable(graph.value or 0), one), 9)


def an_executable_graph_outlives_its_graph() -> None:
    context()
    graph = _graph()
    _kernel_node(graph, _work(2 * MS))
    executable = _executable(graph)
    call("cuGraphDestroy", c_void_p(graph))
    assert near(_timed(executable, stream()), 2)
    call("cuGraphExecDestroy", c_void_p(executable))
    assert code("cuGraphLaunch", c_void_p(executable), None) == 1


def parameters_of_an_executable_graph_can_be_changed() -> None:
    context()
    graph, one = _graph(), stream()
    node = _kernel_node(graph, _work(2 * MS))
    executable = _executable(graph)
    changed = _work(7 * MS)
    call("cuGraphExecKernelNodeSetParams_v2", c_void_p(executable), c_void_p(node), byref(changed))
    assert near(_timed(executable, one), 7)
    call("cuGraphNodeSetEnabled", c_void_p(executable), c_void_p(node), 0)
    assert near(_timed(executable, one), 0)


class _UpdateResult(ctypes.Structure):
    _fields_ = [("result", c_int), ("node", c_void_p), ("from_node", c_void_p)]


def an_executable_graph_is_updated_from_one_of_the_same_shape() -> None:
    context()
    one, info = stream(), _UpdateResult()
    graphs = []
    for duration_ns, count in ((2 * MS, 1), (3 * MS, 1), (1 * MS, 2)):
        graph = _graph()
        previous: tuple[int, ...] = ()
        for _ in range(count):
            previous = (_kernel_node(graph, _work(duration_ns), *previous),)
        graphs.append(graph)
    executable = _executable(graphs[0])
    call("cuGraphExecUpdate_v2", c_void_p(executable), c_void_p(graphs[1]), byref(info))
    assert near(_timed(executable, one), 3)
    refused = code("cuGraphExecUpdate_v2", c_void_p(executable), c_void_p(graphs[2]), byref(info))
    assert (refused, info.result) == (910, 2)
    assert near(_timed(executable, one), 3)


def child_graphs_run_in_the_place_of_their_node() -> None:
    context()
    child, graph = _graph(), _graph()
    _kernel_node(child, _work(3 * MS))
    _kernel_node(child, _work(5 * MS))
    before = _kernel_node(graph, _work(1 * MS))
    node = made("cuGraphAddChildGraphNode", graph, *_after(before), child)
    _kernel_node(graph, _work(1 * MS), node)
    assert near(_timed(_executable(graph), stream()), 7)


def host_nodes_and_empty_nodes_take_their_place() -> None:
    context()
    graph, seen = _graph(), list[str]()
    function_type = CFUNCTYPE(None, c_void_p)
    host = function_type(lambda _: seen.append("host"))

    class Host(ctypes.Structure):
        _fields_ = (("function", function_type), ("data", c_void_p))

    before = _kernel_node(graph, _work(1 * MS))
    empty = made("cuGraphAddEmptyNode", graph, *_after(before))
    made("cuGraphAddHostNode", graph, *_after(empty), byref(Host(host, None)))
    one = stream()
    call("cuGraphLaunch", c_void_p(_executable(graph)), c_void_p(one))
    synchronize(one)
    assert seen == ["host"]


def nodes_tell_what_they_are() -> None:
    context()
    graph = _graph()
    first = _kernel_node(graph, _work(1 * MS, 25))
    second = made("cuGraphAddEmptyNode", graph, *_after(first))
    kind, count = c_int(), c_size_t()
    call("cuGraphNodeGetType", c_void_p(second), byref(kind))
    assert kind.value == 5
    call("cuGraphNodeGetDependencies", c_void_p(second), None, byref(count))
    assert count.value == 1
    parameters = _Kernel()
    call("cuGraphKernelNodeGetParams_v2", c_void_p(first), byref(parameters))
    assert c_uint32.from_address(parameters.parameters[1] or 0).value == 25
    roots = (c_void_p * 2)()
    count.value = 2
    call("cuGraphGetRootNodes", c_void_p(graph), roots, byref(count))
    assert (count.value, roots[0]) == (1, first)


def a_destroyed_node_is_gone_from_its_graph() -> None:
    context()
    graph = _graph()
    first = _kernel_node(graph, _work(5 * MS))
    second = _kernel_node(graph, _work(2 * MS), first)
    call("cuGraphDestroyNode", c_void_p(first))
    count = c_size_t()
    call("cuGraphNodeGetDependencies", c_void_p(second), None, byref(count))
    assert count.value == 0
    assert near(_timed(_executable(graph), stream()), 2)


def a_cycle_is_no_graph() -> None:
    context()
    graph = _graph()
    first = _kernel_node(graph, _work(1))
    second = _kernel_node(graph, _work(1), first)
    edge = (c_void_p * 1)(second), (c_void_p * 1)(first)
    call("cuGraphAddDependencies", c_void_p(graph), *edge, c_size_t(1))
    assert code("cuGraphInstantiateWithFlags", byref(c_void_p()), c_void_p(graph), c_uint64(0)) == 1


def a_graph_of_more_nodes_than_the_queue_holds_runs_whole() -> None:
    context()
    kernel, one, word = function("spin_count"), stream(), Word()
    call("cuStreamBeginCapture_v2", c_void_p(one), 0)
    for _ in range(2500):
        launch(kernel, one, nanoseconds(1 * US), c_uint64(word.address))
    graph = c_void_p()
    call("cuStreamEndCapture", c_void_p(one), byref(graph))
    call("cuGraphLaunch", c_void_p(_executable(graph.value or 0)), c_void_p(one))
    synchronize(one)
    assert word.value == 2500


class _Node(ctypes.Structure):
    """CUgraphNodeParams with a kernel in it."""

    _fields_ = [
        ("type", c_int),
        ("reserved", c_int * 3),
        ("kernel", _Kernel),
        ("rest", ctypes.c_uint8 * (232 - ctypes.sizeof(_Kernel))),
        ("end", c_uint64),
    ]


def a_node_of_any_type_can_be_added_and_changed() -> None:
    context()
    graph, one = _graph(), stream()
    assert ctypes.sizeof(_Node) == 256
    work = _work(2 * MS)
    node = made("cuGraphAddNode_v2", graph, None, None, c_size_t(0), byref(_Node(type=0, kernel=work)))
    executable = _executable(graph)
    assert near(_timed(executable, one), 2)
    longer = _work(6 * MS)
    parameters = _Node(type=0, kernel=longer)
    call("cuGraphExecNodeSetParams", c_void_p(executable), c_void_p(node), byref(parameters))
    assert near(_timed(executable, one), 6)
    call("cuGraphNodeSetParams", c_void_p(node), byref(parameters))
    assert near(_timed(_executable(graph), one), 6)
    refused = _Node(type=13)
    unsupported = code("cuGraphAddNode_v2", byref(c_void_p()), c_void_p(graph), None, None, c_size_t(0), byref(refused))
    assert unsupported == 801


class _Allocation(ctypes.Structure):
    """CUDA_MEM_ALLOC_NODE_PARAMS."""

    _fields_ = [
        ("type", c_int),
        ("handles", c_int),
        ("place", c_int),
        ("device", c_int),
        ("rest", c_uint64 * 9),
        ("accesses", c_void_p),
        ("access_count", c_size_t),
        ("bytes", c_size_t),
        ("address", c_uint64),
    ]


def _graph_memory() -> tuple[int, int]:
    """Used, and held."""
    values = [c_uint64(), c_uint64()]
    for value, attribute in zip(values, (0, 2), strict=True):
        call("cuDeviceGetGraphMemAttribute", 0, attribute, byref(value))
    return values[0].value, values[1].value


def a_graph_that_allocates_takes_the_most_it_has_at_a_time_when_it_first_runs() -> None:
    context()
    one, graph = stream(), _graph()
    first, second = (_Allocation(type=1, place=1, bytes=n << 20) for n in (30, 20))
    at = made("cuGraphAddMemAllocNode", graph, None, c_size_t(0), byref(first))
    word = _Fill(address=first.address, value=7, element=4, width=1, height=1)
    filled = made("cuGraphAddMemsetNode", graph, byref(c_void_p(at)), c_size_t(1), byref(word), None)
    gone = made("cuGraphAddMemFreeNode", graph, byref(c_void_p(filled)), c_size_t(1), c_uint64(first.address))
    made("cuGraphAddMemAllocNode", graph, byref(c_void_p(gone)), c_size_t(1), byref(second))
    executable = _executable(graph)
    assert _graph_memory() == (0, 0)
    for _ in range(2):
        call("cuGraphLaunch", c_void_p(executable), c_void_p(one))
        synchronize(one)
        assert _graph_memory() == (30 << 20, 30 << 20)
    assert from_device(first.address, 4) == (7).to_bytes(4, "little")
    call("cuGraphExecDestroy", c_void_p(executable))
    assert _graph_memory() == (0, 30 << 20)
    call("cuDeviceGraphMemTrim", 0)
    assert _graph_memory() == (0, 0)


def an_allocation_that_is_captured_is_a_node() -> None:
    context()
    one, graph, address = stream(), c_void_p(), c_uint64()
    call("cuStreamBeginCapture_v2", c_void_p(one), 0)
    call("cuMemAllocAsync", byref(address), c_size_t(1 << 20), c_void_p(one))
    call("cuMemFreeAsync", address, c_void_p(one))
    call("cuStreamEndCapture", c_void_p(one), byref(graph))
    nodes, count = (c_void_p * 2)(), c_size_t(2)
    call("cuGraphGetNodes", graph, nodes, byref(count))
    types = []
    for node in nodes:
        kind = c_int()
        call("cuGraphNodeGetType", c_void_p(node), byref(kind))
        types.append(kind.value)
    assert types == [10, 11]
    told = _Allocation()
    call("cuGraphMemAllocNodeGetParams", c_void_p(nodes[0]), byref(told))
    assert (told.bytes, told.address, told.device) == (1 << 20, address.value, 0)
