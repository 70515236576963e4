"""Stream capture: what becomes a graph, what is forbidden meanwhile, and what that does to the capture."""

import threading
from ctypes import CFUNCTYPE, byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p

from cuda_calls import (
    KERNELS,
    SUCCESS,
    Gate,
    Word,
    Work,
    allocate,
    call,
    code,
    context,
    event,
    function,
    launch,
    made,
    nanoseconds,
    record,
    stream,
    synchronize,
    wait,
)

GLOBAL, THREAD_LOCAL, RELAXED = range(3)
NONE, ACTIVE, INVALIDATED = range(3)

ILLEGAL_STATE = 401
UNSUPPORTED = 900
IS_INVALIDATED = 901
MERGE = 902
UNMATCHED = 903
UNJOINED = 904
ISOLATION = 905
IMPLICIT = 906
CAPTURED_EVENT = 907
WRONG_THREAD = 908


def _begin(on: int, mode: int = GLOBAL) -> None:
    call("cuStreamBeginCapture_v2", c_void_p(on), mode)


def _end(on: int) -> tuple[int, int]:
    """Result, and the graph or 0."""
    graph = c_void_p()
    result = code("cuStreamEndCapture", c_void_p(on), byref(graph))
    return result, graph.value or 0


def _status(on: int) -> int:
    status = c_int()
    call("cuStreamIsCapturing", c_void_p(on), byref(status))
    return status.value


def _nodes(graph: int) -> int:
    count = c_size_t()
    call("cuGraphGetNodes", c_void_p(graph), None, byref(count))
    return count.value


def _run(graph: int, on: int) -> None:
    executable = made("cuGraphInstantiateWithFlags", graph, c_uint64(0))
    call("cuGraphLaunch", c_void_p(executable), c_void_p(on))
    synchronize(on)


def what_is_captured_runs_when_its_graph_is_launched() -> None:
    context()
    kernel, one, word = function("spin_count"), stream(), Word()
    _begin(one)
    assert _status(one) == ACTIVE
    for _ in range(3):
        launch(kernel, one, nanoseconds(1000), c_uint64(word.address))
    result, graph = _end(one)
    assert (result, _status(one), _nodes(graph)) == (SUCCESS, NONE, 3)
    synchronize(one)
    assert word.value == 0
    _run(graph, one)
    _run(graph, one)
    assert word.value == 6


def a_captured_launch_keeps_its_arguments() -> None:
    context()
    kernel, one, words = function("spin_count"), stream(), [Word(), Word()]
    address = c_uint64(words[0].address)
    _begin(one)
    launch(kernel, one, nanoseconds(1000), address)
    address.value = words[1].address
    _, graph = _end(one)
    _run(graph, one)
    assert [word.value for word in words] == [1, 0]


def streams_join_by_events_and_must_be_joined_again() -> None:
    context()
    kernel, one, two, word = function("spin_count"), stream(), stream(), Word()
    _begin(one)
    wait(record(event(), one), two)
    assert _status(two) == ACTIVE
    launch(kernel, two, nanoseconds(1000), c_uint64(word.address))
    assert _end(two)[0] == UNMATCHED
    assert _end(one) == (UNJOINED, 0)
    assert _status(two) == NONE
    _begin(one)
    wait(record(event(), one), two)
    launch(kernel, two, nanoseconds(1000), c_uint64(word.address))
    wait(record(event(), two), one)
    result, graph = _end(one)
    assert result == SUCCESS
    _run(graph, one)
    assert word.value == 1


def synchronizing_a_captured_stream_invalidates_its_capture() -> None:
    context()
    one, work = stream(), Work()
    for mode in (GLOBAL, THREAD_LOCAL, RELAXED):
        for name in ("cuStreamSynchronize", "cuStreamQuery"):
            _begin(one, mode)
            assert code(name, c_void_p(one)) == UNSUPPORTED
            assert _status(one) == INVALIDATED
            assert code("cuStreamSynchronize", c_void_p(one)) == IS_INVALIDATED
            assert _end(one) == (IS_INVALIDATED, 0)
            assert _status(one) == NONE
    work(one, 1000)
    synchronize(one)  # as if nothing had been


def synchronizing_the_context_invalidates_every_capture_in_it() -> None:
    context()
    one = stream()
    for mode in (GLOBAL, THREAD_LOCAL, RELAXED):
        _begin(one, mode)
        assert code("cuCtxSynchronize") == UNSUPPORTED
        assert _end(one) == (IS_INVALIDATED, 0)


def the_default_stream_is_forbidden_beside_a_captured_blocking_stream() -> None:
    context()
    blocking, free, work = stream(blocking=True), stream(), Work()
    for mode in (GLOBAL, THREAD_LOCAL, RELAXED):
        _begin(blocking, mode)
        address = allocate(4) if mode == RELAXED else 0
        assert code("cuMemsetD32Async", c_void_p(address), 0, c_size_t(0), None) == IMPLICIT
        assert _end(blocking) == (IS_INVALIDATED, 0)
        _begin(free, mode)
        work(0, 1000)
        assert _end(free)[0] == SUCCESS


def unsafe_calls_depend_on_the_mode() -> None:
    context()
    one, outside = stream(), record(event(), stream())
    calls = (
        ("cuMemAlloc_v2", byref(c_void_p()), c_size_t(64)),
        ("cuMemHostAlloc", byref(c_void_p()), c_size_t(64), 0),
        ("cuEventQuery", c_void_p(outside)),
        ("cuEventSynchronize", c_void_p(outside)),
    )
    for mode, expected in ((GLOBAL, UNSUPPORTED), (THREAD_LOCAL, UNSUPPORTED), (RELAXED, SUCCESS)):
        for name, *arguments in calls:
            _begin(one, mode)
            assert code(name, *arguments) == expected, name
            assert (_end(one)[0] == SUCCESS) == (expected == SUCCESS)


def another_threads_event_query_breaks_a_global_capture_alone() -> None:
    current = context()
    one, outside = stream(), record(event(), stream())

    def ask_elsewhere() -> int:
        results: list[int] = []

        def ask() -> None:
            call("cuCtxSetCurrent", c_void_p(current))
            results.append(code("cuEventQuery", c_void_p(outside)))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return results[0]

    for mode, expected in ((GLOBAL, UNSUPPORTED), (THREAD_LOCAL, SUCCESS), (RELAXED, SUCCESS)):
        _begin(one, mode)
        assert ask_elsewhere() == expected
        assert (_end(one)[0] == SUCCESS) == (expected == SUCCESS)


def a_thread_that_relaxes_may_make_unsafe_calls() -> None:
    context()
    one, outside = stream(), record(event(), stream())
    mode = c_int(RELAXED)
    _begin(one)
    call("cuThreadExchangeStreamCaptureMode", byref(mode))
    assert mode.value == GLOBAL
    assert code("cuEventQuery", c_void_p(outside)) == SUCCESS
    assert allocate(64)
    call("cuThreadExchangeStreamCaptureMode", byref(mode))
    assert mode.value == RELAXED
    assert _end(one)[0] == SUCCESS


def a_captured_event_has_no_place_in_time() -> None:
    context()
    one, mark = stream(), event()
    _begin(one)
    record(mark, one)
    assert code("cuEventQuery", c_void_p(mark)) == CAPTURED_EVENT
    assert _end(one) == (IS_INVALIDATED, 0)
    assert code("cuEventSynchronize", c_void_p(mark)) == CAPTURED_EVENT
    record(mark, one)
    assert code("cuEventSynchronize", c_void_p(mark)) == SUCCESS


def captures_depend_on_nothing_outside_and_do_not_merge() -> None:
    context()
    one, two, outside = stream(), stream(), record(event(), stream())
    _begin(one)
    assert code("cuStreamWaitEvent", c_void_p(one), c_void_p(outside), 0) == ISOLATION
    assert _end(one) == (IS_INVALIDATED, 0)
    _begin(one)
    _begin(two)
    other = record(event(), two)
    assert code("cuStreamWaitEvent", c_void_p(one), c_void_p(other), 0) == MERGE
    assert _end(one)[0] == IS_INVALIDATED
    assert _end(two)[0] == IS_INVALIDATED


def captures_begin_and_end_in_their_own_stream_and_thread() -> None:
    current = context()
    one = stream()
    assert _end(one) == (ILLEGAL_STATE, 0)
    assert code("cuStreamBeginCapture_v2", None, GLOBAL) == UNSUPPORTED
    _begin(one)
    assert code("cuStreamBeginCapture_v2", c_void_p(one), GLOBAL) == ILLEGAL_STATE
    results: list[int] = []

    def elsewhere() -> None:
        call("cuCtxSetCurrent", c_void_p(current))
        results.append(_end(one)[0])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert results == [WRONG_THREAD]
    assert _end(one)[0] == SUCCESS


def a_destroyed_stream_takes_its_capture_along() -> None:
    context()
    one, two = stream(), stream()
    _begin(one)
    call("cuStreamDestroy_v2", c_void_p(one))
    assert allocate(64)  # no capture forbids it any more
    assert _status(two) == NONE


def callbacks_are_not_captured_but_host_functions_are() -> None:
    context()
    one = stream()
    seen: list[int] = []
    callback = CFUNCTYPE(None, c_void_p, c_int, c_void_p)(lambda *_: seen.append(0))
    host = CFUNCTYPE(None, c_void_p)(lambda _: seen.append(1))
    _begin(one)
    assert code("cuStreamAddCallback", c_void_p(one), callback, None, 0) == UNSUPPORTED
    call("cuLaunchHostFunc", c_void_p(one), host, None)
    _, graph = _end(one)
    _run(graph, one)
    assert seen == [1]


def everything_that_streams_do_can_be_captured() -> None:
    context()
    one, kernel, word = stream(), function("spin_count"), Word()
    source, address = Word(), allocate(64)
    source.value = 77
    _begin(one)
    call("cuMemcpyHtoDAsync_v2", c_void_p(address), c_void_p(source.address), c_size_t(4), c_void_p(one))
    call("cuMemsetD32Async", c_void_p(address + 4), c_uint32(5), c_size_t(1), c_void_p(one))
    launch(kernel, one, nanoseconds(1000), c_uint64(word.address))
    call("cuMemcpyDtoHAsync_v2", c_void_p(word.address + 8), c_void_p(address), c_size_t(8), c_void_p(one))
    call("cuStreamWriteValue32_v2", c_void_p(one), c_void_p(word.address + 4), c_uint32(3), 0)
    _, graph = _end(one)
    _run(graph, one)
    values = (c_uint32 * 4).from_address(word.address)
    assert list(values) == [1, 3, 77, 5]


def a_module_can_be_loaded_during_a_capture() -> None:
    context()
    one = stream()
    _begin(one)
    assert made("cuModuleLoadData", KERNELS.read_bytes() + b"\0")
    assert _end(one)[0] == SUCCESS


def a_gate_outside_does_not_hold_a_capture() -> None:
    context()
    one, gate = stream(), Gate()
    gate.hold(one)
    _begin(one)
    _, graph = _end(one)
    assert _nodes(graph) == 0
    gate.open()
    synchronize(one)
