"""Streams and events: order, contention, waiting. Times are the device's own, so a busy host changes nothing."""

import threading
import time
from ctypes import CFUNCTYPE, Structure, byref, c_int, c_uint32, c_uint64, c_void_p

from cuda_calls import (
    MS,
    NOT_PERMITTED,
    NOT_READY,
    US,
    Gate,
    Word,
    Work,
    after_gate,
    call,
    code,
    context,
    cuda,
    elapsed_ms,
    event,
    function,
    launch,
    made,
    nanoseconds,
    near,
    query,
    record,
    stream,
    synchronize,
    wait,
)

LEGACY = 1
PER_THREAD = 2
HOST_FUNCTION = CFUNCTYPE(None, c_void_p)
CALLBACK = CFUNCTYPE(None, c_void_p, c_int, c_void_p)


def kernels_in_one_stream_run_one_after_another() -> None:
    context()
    work, one = Work(), stream()
    gate = Gate()

    def put() -> None:
        for _ in range(5):
            work(one, 2 * MS, sm_pct=10)

    (end,) = after_gate(gate, (one, put))
    assert near(end, 10)


def kernels_that_fit_run_side_by_side() -> None:
    context()
    work, one, two = Work(), stream(), stream()
    ends = after_gate(
        Gate(),
        (one, lambda: work(one, 10 * MS, sm_pct=50)),
        (two, lambda: work(two, 8 * MS, sm_pct=50)),
    )
    assert near(ends[0], 10)
    assert near(ends[1], 8)


def kernels_that_want_all_sms_slow_one_another() -> None:
    """Both at half speed until the shorter one has ended."""
    context()
    work, one, two = Work(), stream(), stream()
    ends = after_gate(Gate(), (one, lambda: work(one, 10 * MS)), (two, lambda: work(two, 30 * MS)))
    assert near(ends[0], 20)
    assert near(ends[1], 40)


def bandwidth_slows_those_who_want_much_of_it() -> None:
    """Demands of 20% and 100%: the small one is met, the other gets 80%."""
    context()
    work, one, two = Work(), stream(), stream()
    ends = after_gate(
        Gate(),
        (one, lambda: work(one, 20 * MS, sm_pct=50, bandwidth_pct=20)),
        (two, lambda: work(two, 8 * MS, sm_pct=50, bandwidth_pct=100)),
    )
    assert near(ends[0], 20)
    assert near(ends[1], 10)


def an_urgent_stream_gets_twice_the_sms() -> None:
    context()
    work, urgent, other = Work(), stream(priority=-1), stream()
    ends = after_gate(Gate(), (urgent, lambda: work(urgent, 10 * MS)), (other, lambda: work(other, 10 * MS)))
    assert near(ends[0], 15)
    assert near(ends[1], 20)


def a_stream_waits_for_an_event_of_another() -> None:
    context()
    work, producer, consumer = Work(), stream(), stream()
    gate = Gate()
    gate.hold(producer)
    work(producer, 5 * MS, sm_pct=10)
    ready = record(event(), producer)
    work(producer, 50 * MS, sm_pct=10)
    wait(ready, consumer)
    work(consumer, 2 * MS, sm_pct=10)
    done = record(event(), consumer)
    gate.open()
    synchronize(consumer)
    assert near(elapsed_ms(gate.event, done), 7)
    assert query(producer) == NOT_READY


def an_event_that_was_never_recorded_holds_nobody() -> None:
    context()
    one = stream()
    wait(event(), one)
    synchronize(one)
    assert code("cuEventQuery", c_void_p(event())) == 0


def a_later_record_replaces_an_earlier_one() -> None:
    context()
    work, one, two = Work(), stream(), stream()
    mark = record(event(), one)
    gate = Gate()
    gate.hold(one)
    work(one, 3 * MS)
    record(mark, one)
    assert code("cuEventQuery", c_void_p(mark)) == NOT_READY
    wait(mark, two)
    record(mark, stream())  # the wait is for what was recorded when it was made
    assert query(two) == NOT_READY
    gate.open()
    synchronize(two)
    assert query(one) == 0


def the_default_stream_waits_for_blocking_streams_and_they_for_it() -> None:
    context()
    work, blocking = Work(), stream(blocking=True)
    gate = Gate()
    gate.hold(blocking)
    work(blocking, 3 * MS, sm_pct=10)
    work(0, 4 * MS, sm_pct=10)
    in_default = record(event(), 0)
    work(blocking, 5 * MS, sm_pct=10)
    end = record(event(), blocking)
    gate.open()
    synchronize(blocking)
    assert near(elapsed_ms(gate.event, in_default), 7)
    assert near(elapsed_ms(gate.event, end), 12)


def the_default_stream_ignores_non_blocking_streams() -> None:
    context()
    work, free = Work(), stream()
    gate = Gate()
    gate.hold(free)
    work(free, 3 * MS, sm_pct=10)
    work(0, 4 * MS, sm_pct=10)
    synchronize(0)
    assert query(free) == NOT_READY
    gate.open()
    synchronize(free)


def each_thread_has_a_default_stream_of_its_own_for_those_who_ask() -> None:
    current = context()
    work, word = Work(), Word()
    call("cuStreamWaitValue32_v2", c_void_p(PER_THREAD), c_void_p(word.address), c_uint32(1), 1)
    seen: list[int] = []

    def other() -> None:
        call("cuCtxSetCurrent", c_void_p(current))
        work(PER_THREAD, 1 * MS, sm_pct=10)
        synchronize(PER_THREAD)
        seen.append(query(PER_THREAD))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [0]
    assert query(PER_THREAD) == NOT_READY
    word.value = 1
    synchronize(PER_THREAD)


def ptsz_calls_mean_the_threads_stream_by_0() -> None:
    context()
    work, word = Work(), Word()
    call("cuStreamWaitValue32_v2_ptsz", None, c_void_p(word.address), c_uint32(1), 1)
    assert query(PER_THREAD) == NOT_READY
    assert code("cuStreamQuery_ptsz", None) == NOT_READY
    other = stream()
    work(other, 1 * MS)
    synchronize(other)
    word.value = 1
    call("cuStreamSynchronize_ptsz", None)
    assert query(PER_THREAD) == 0


def a_launch_beyond_the_queue_blocks_until_there_is_room() -> None:
    current = context()
    work, one = Work(), stream()
    gate = Gate()
    gate.hold(one)
    for _ in range(1024 - 3):  # the wait has a place too, and so have the gate's own wait and record
        work(one, 10 * US)
    launched = threading.Event()

    def beyond() -> None:
        call("cuCtxSetCurrent", c_void_p(current))
        work(one, 10 * US)
        work(one, 10 * US)
        launched.set()

    thread = threading.Thread(target=beyond)
    thread.start()
    assert not launched.wait(0.1)
    gate.open()
    assert launched.wait(20)
    thread.join()
    synchronize(one)


def many_launches_through_a_short_queue_all_run() -> None:
    context()
    kernel, one, word = function("spin_count"), stream(), Word()
    for _ in range(3000):
        launch(kernel, one, nanoseconds(2 * US), c_uint64(word.address))
    synchronize(one)
    assert word.value == 3000


def elapsed_time_is_the_devices() -> None:
    context()
    work, one = Work(), stream()
    gate = Gate()
    gate.hold(one)
    start = record(event(), one)
    work(one, 1_234_567)
    end = record(event(), one)
    gate.open()
    time.sleep(0.01)  # looking later changes nothing
    synchronize(one)
    assert near(elapsed_ms(start, end), 1.234567)


def elapsed_time_needs_two_recorded_events_with_timing() -> None:
    context()
    one = stream()
    start, end = event(), event()
    result = byref(c_int())
    assert code("cuEventElapsedTime", result, c_void_p(start), c_void_p(end)) == 400
    record(start, one)
    untimed = record(event(2), one)
    synchronize(one)
    assert code("cuEventElapsedTime", result, c_void_p(start), c_void_p(untimed)) == 400
    gate = Gate()
    gate.hold(one)
    record(end, one)
    assert code("cuEventElapsedTime", result, c_void_p(start), c_void_p(end)) == NOT_READY
    gate.open()


def a_host_function_runs_after_what_is_before_it_and_holds_what_is_after() -> None:
    context()
    work, one = Work(), stream()
    entered, leave = threading.Event(), threading.Event()

    def function(_data: int | None) -> None:
        entered.set()
        leave.wait(20)

    host = HOST_FUNCTION(function)
    gate = Gate()
    gate.hold(one)
    work(one, 1 * MS)
    call("cuLaunchHostFunc", c_void_p(one), host, None)
    work(one, 1 * MS)
    assert not entered.wait(0.05)
    gate.open()
    assert entered.wait(20)
    assert query(one) == NOT_READY
    leave.set()
    synchronize(one)


def a_callback_gets_its_stream_and_data() -> None:
    context()
    one = stream()
    got: list[tuple[int, int, int]] = []

    def function(which: int, status: int, data: int) -> None:
        got.append((which, status, data))

    callback = CALLBACK(function)
    call("cuStreamAddCallback", c_void_p(one), callback, c_void_p(77), 0)
    synchronize(one)
    assert got == [(one, 0, 77)]


def a_host_function_may_not_call_the_driver() -> None:
    context()
    one, address = stream(), c_void_p()
    results: list[int] = []

    def function(_data: int | None) -> None:
        results.append(code("cuStreamQuery", c_void_p(one)))
        results.append(code("cuMemAlloc_v2", byref(address), c_uint64(4)))
        results.append(code("cuStreamSynchronize", c_void_p(one)))

    host = HOST_FUNCTION(function)
    call("cuLaunchHostFunc", c_void_p(one), host, None)
    synchronize(one)
    assert results == [NOT_PERMITTED] * 3
    assert query(one) == 0  # outside, it may again


def a_kernel_spins_until_its_word_is_set() -> None:
    context()
    kernel, one, word = function("wait_word"), stream(), Word()
    launch(kernel, one, c_uint64(word.address))
    assert query(one) == NOT_READY
    word.value = 7
    synchronize(one)


def a_stream_writes_words_in_its_order() -> None:
    context()
    work, one, word = Work(), stream(), Word()
    gate = Gate()
    gate.hold(one)
    work(one, 1 * MS)
    call("cuStreamWriteValue32_v2", c_void_p(one), c_void_p(word.address), c_uint32(9), 0)
    assert word.value == 0
    gate.open()
    synchronize(one)
    assert word.value == 9


class _BatchOperation(Structure):
    _fields_ = [
        ("operation", c_int),
        ("address", c_uint64),
        ("value", c_uint64),
        ("flags", c_uint32),
        ("alias", c_uint64),
        ("pad", c_uint64),
    ]


def words_are_waited_for_and_written_in_batches() -> None:
    context()
    one, word, answer = stream(), Word(), Word()
    wait_32, write_32 = 1, 2
    batch = (_BatchOperation * 2)(
        _BatchOperation(operation=wait_32, address=word.address, value=3, flags=1),
        _BatchOperation(operation=write_32, address=answer.address, value=4),
    )
    call("cuStreamBatchMemOp_v2", c_void_p(one), 2, batch, 0)
    assert query(one) == NOT_READY
    word.value = 3
    synchronize(one)
    assert answer.value == 4


def what_a_stream_has_done_is_seen_without_a_call() -> None:
    context()
    one, word = stream(), Word()
    call("cuStreamWriteValue32_v2", c_void_p(one), c_void_p(word.address), c_uint32(9), 0)
    deadline = time.monotonic() + 20
    while word.value != 9:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def a_destroyed_stream_finishes_its_work() -> None:
    context()
    kernel, one, word = function("spin_count"), stream(), Word()
    launch(kernel, one, nanoseconds(3 * MS), c_uint64(word.address))
    call("cuStreamDestroy_v2", c_void_p(one))
    call("cuCtxSynchronize")
    assert word.value == 1
    assert query(one) == 400


def waiting_costs_next_to_nothing() -> None:
    context()
    work, one = Work(), stream()
    before_s = time.process_time()
    work(one, 400 * MS)
    synchronize(one)
    assert time.process_time() - before_s < 0.05


def a_synchronization_does_not_wait_for_what_comes_later() -> None:
    current = context()
    work, one = Work(), stream()
    stop = threading.Event()
    gate = Gate()
    gate.hold(one)
    work(one, 1 * MS)
    synchronized = threading.Event()

    def synchronizing() -> None:
        call("cuCtxSetCurrent", c_void_p(current))
        synchronize(one)
        synchronized.set()
        stop.set()

    thread = threading.Thread(target=synchronizing)
    thread.start()
    time.sleep(0.02)
    gate.open()
    deadline = time.monotonic() + 20
    while not stop.is_set():
        work(one, 1 * MS)
        assert time.monotonic() < deadline
    thread.join()
    assert query(one) == NOT_READY
    call("cuCtxSynchronize")


def priorities_are_clamped_to_their_range() -> None:
    context()
    least, greatest, priority = c_int(), c_int(), c_int()
    call("cuCtxGetStreamPriorityRange", byref(least), byref(greatest))
    assert (least.value, greatest.value) == (0, -5)
    call("cuStreamGetPriority", c_void_p(stream(priority=-100)), byref(priority))
    assert priority.value == -5


def handles_that_are_none_are_refused() -> None:
    context()
    work, gone = Work(), stream()
    call("cuStreamDestroy_v2", c_void_p(gone))
    for handle in (gone, 0x1234, 0xFFFF_FFFF_FFFF_FFF0, gone + 8):
        assert code("cuStreamSynchronize", c_void_p(handle)) == 400
        assert code("cuEventQuery", c_void_p(handle)) == 400
        assert cuda.cuLaunchKernel(c_void_p(handle), 1, 1, 1, 1, 1, 1, 0, None, None, None) == 400
    work(0, 1)
    synchronize(0)


def many_threads_launch_wait_and_measure_at_once() -> None:
    current = context()
    kernel, word = function("spin_count"), Word()
    errors: list[BaseException] = []

    def busy(seed: int) -> None:
        try:
            call("cuCtxSetCurrent", c_void_p(current))
            for turn in range(20):
                one = stream(blocking=(seed + turn) % 2 == 0)
                start = record(event(), one)
                for _ in range(10):
                    launch(kernel, one, nanoseconds(5 * US), c_uint64(word.address))
                end = record(event(), one)
                synchronize(one)
                assert elapsed_ms(start, end) >= 0.05
                call("cuEventDestroy_v2", c_void_p(start))
                call("cuStreamDestroy_v2", c_void_p(one))
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=busy, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert word.value == 8 * 20 * 10


def a_module_is_unloaded_after_its_kernels() -> None:
    context()
    module_handle = made("cuModuleLoadData", b".version 6.4\n.target sm_70\n.visible .entry k() { ret; }\0")
    kernel = function("k", module_handle)
    one = stream()
    launch(kernel, one)
    call("cuModuleUnload", c_void_p(module_handle))
    assert query(one) == 0
    assert cuda.cuLaunchKernel(c_void_p(kernel), 1, 1, 1, 1, 1, 1, 0, c_void_p(one), None, None) == 400
