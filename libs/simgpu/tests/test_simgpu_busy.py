"""Busy and idle time from a log of operations."""

from hypothesis import given
from hypothesis import strategies as st

from muxflow_simgpu import Operation, OperationKind, busy_share, device_busy, idle, total_ns

TIMES = st.integers(min_value=0, max_value=60)
OPERATIONS = st.lists(
    st.builds(
        lambda times, pid, kind: operation(min(times), max(times), pid=pid, kind=kind),
        st.tuples(TIMES, TIMES),
        st.integers(min_value=1, max_value=3),
        st.sampled_from([OperationKind.KERNEL, OperationKind.WORD_WAIT, OperationKind.COPY_H2D]),
    )
)


def operation(
    start: int | None, end: int, *, pid: int = 1, kind: OperationKind = OperationKind.KERNEL, number: int = 1
) -> Operation:
    return Operation(
        number=number,
        pid=pid,
        tag="",
        kind=kind,
        enqueued_ns=0,
        started_ns=start,
        ended_ns=end,
        ran_ns=end - (start or end),
        work_ns=1.0,
        context=0,
        stream=0,
        cancelled=start is None,
        sm_share=1.0,
        bandwidth=0.0,
    )


def test_overlapping_and_touching_kernels_are_one_interval() -> None:
    operations = [operation(10, 20), operation(15, 30), operation(30, 40), operation(50, 60)]
    assert device_busy(operations, 0, 100) == ((10, 40), (50, 60))


def test_the_device_is_busy_only_between_the_two_times() -> None:
    operations = [operation(0, 10), operation(20, 50), operation(90, 120)]
    assert device_busy(operations, 5, 100) == ((5, 10), (20, 50), (90, 100))


def test_copies_and_what_never_started_do_not_count() -> None:
    operations = [operation(0, 10, kind=OperationKind.COPY_D2H), operation(None, 50)]
    assert device_busy(operations, 0, 100) == ()


def test_processes_can_be_told_apart() -> None:
    operations = [operation(0, 10, pid=1), operation(5, 25, pid=2)]
    assert device_busy(operations, 0, 100, pids={2}) == ((5, 25),)
    assert busy_share(operations, 0, 100, pids={1}) == 0.1
    assert busy_share(operations, 0, 100) == 0.25


def test_without_work_all_is_idle() -> None:
    assert idle((), 3, 9) == ((3, 9),)


@given(operations=OPERATIONS, start=TIMES, length=st.integers(min_value=1, max_value=60))
def test_every_moment_is_either_busy_or_idle(operations: list[Operation], start: int, length: int) -> None:
    end = start + length
    busy = device_busy(operations, start, end)
    gaps = idle(busy, start, end)
    assert total_ns(busy) + total_ns(gaps) == length
    for moment in range(start, end):
        runs = any(
            each.started_ns <= moment < each.ended_ns
            for each in operations
            if each.kind != OperationKind.COPY_H2D and each.started_ns is not None
        )
        assert runs == any(first <= moment < last for first, last in busy)
        assert runs != any(first <= moment < last for first, last in gaps)
