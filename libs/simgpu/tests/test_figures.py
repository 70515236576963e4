"""Figures about protection, held to logs whose figures are known."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muxflow_simgpu import Operation, OperationKind, device_busy, figures

MS = 1_000_000
ONLINE, OFFLINE = 1, 2


def kernel(pid: int, start_ms: float, end_ms: float, *, work_ms: float | None = None) -> Operation:
    """A kernel that was launched when it started."""
    return Operation(
        number=0,
        pid=pid,
        tag="",
        kind=OperationKind.KERNEL,
        enqueued_ns=int(start_ms * MS),
        started_ns=int(start_ms * MS),
        ended_ns=int(end_ms * MS),
        ran_ns=int((end_ms - start_ms) * MS),
        work_ns=(end_ms - start_ms if work_ms is None else work_ms) * MS,
        context=0,
        stream=0,
        cancelled=False,
        sm_share=1.0,
        bandwidth=0.0,
    )


def steady(pid: int, start_ms: int, end_ms: int) -> list[Operation]:
    """Kernels of 1 ms, one after the other."""
    return [kernel(pid, at, at + 1) for at in range(start_ms, end_ms)]


def test_a_job_that_runs_in_all_idle_time_has_the_whole_share() -> None:
    log = [kernel(ONLINE, 0, 400), *steady(OFFLINE, 400, 1000)]
    share = figures.offline_share(log, online={ONLINE}, offline={OFFLINE}, start_ns=0, end_ns=1000 * MS)
    assert share == pytest.approx(1.0)


def test_a_job_that_is_slowed_beside_the_online_side_counts_by_what_it_got_done() -> None:
    log = [kernel(ONLINE, 0, 500), kernel(OFFLINE, 0, 1000, work_ms=250)]
    share = figures.offline_share(log, online={ONLINE}, offline={OFFLINE}, start_ns=0, end_ns=1000 * MS)
    assert share == pytest.approx(0.5)


def test_bursts_are_parted_by_quiet_and_single_requests_are_none() -> None:
    log = [*steady(ONLINE, 0, 400), *steady(ONLINE, 450, 600), *steady(ONLINE, 800, 803), *steady(ONLINE, 1000, 1600)]
    found = figures.bursts(log, {ONLINE}, 2000 * MS)
    assert found == [figures.Burst(0, 600 * MS, 1000 * MS), figures.Burst(1000 * MS, 1600 * MS, 2000 * MS)]


def test_the_stop_is_the_end_of_the_last_offline_kernel_in_a_burst() -> None:
    log = [*steady(OFFLINE, 0, 540), *steady(ONLINE, 500, 1100), *steady(OFFLINE, 1150, 1600)]
    (burst,) = figures.bursts(log, {ONLINE}, 1600 * MS)
    assert figures.stop_ms(burst, log, {OFFLINE}) == pytest.approx(40)
    assert figures.recover_ms(burst, log, {OFFLINE}) == pytest.approx(40, abs=5)


def test_what_never_stopped_or_never_came_back_has_no_figure() -> None:
    slowed = [*steady(OFFLINE, 0, 1200), *steady(ONLINE, 500, 1100)]
    (burst,) = figures.bursts(slowed, {ONLINE}, 1200 * MS)
    assert figures.stop_ms(burst, slowed, {OFFLINE}) is None
    gone = [*steady(OFFLINE, 0, 540), *steady(ONLINE, 500, 1100)]
    (burst,) = figures.bursts(gone, {ONLINE}, 2000 * MS)
    assert figures.recover_ms(burst, gone, {OFFLINE}) is None


def test_after_a_freeze_only_what_was_in_flight_ends() -> None:
    log = [*steady(OFFLINE, 0, 103), *steady(OFFLINE, 400, 500)]
    assert figures.stopped_ns(log, {OFFLINE}, after_ns=100 * MS) == 103 * MS
    assert figures.stopped_ns(log, {OFFLINE}, after_ns=200 * MS) == 200 * MS


def test_the_interval_of_a_median_holds_it() -> None:
    found = figures.median_interval([1.0, 1.1, 1.2, 1.3, 5.0])
    assert found.low <= found.median == 1.2 <= found.high
    assert (found.low, found.high) == (1.0, 5.0)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert figures.percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert figures.percentile(range(1, 101), 99) == 99
    with pytest.raises(ValueError, match="no values"):
        figures.percentile([], 99)


LATENCIES = st.lists(st.floats(min_value=0.1, max_value=100), min_size=1, max_size=20).map(tuple)


@given(slices=st.lists(LATENCIES, min_size=1, max_size=8), times=st.floats(min_value=0.5, max_value=4))
@settings(max_examples=30, deadline=None)
def test_what_takes_so_many_times_as_long_has_that_ratio_without_noise(
    slices: list[tuple[float, ...]], times: float
) -> None:
    slower = tuple(tuple(latency * times for latency in each) for each in slices)
    found = figures.ratio_interval([figures.Pair(tuple(slices), slower)], resamples=20)
    assert found is not None
    assert (found.low, found.median, found.high) == pytest.approx((times, times, times))


def test_the_ratio_is_the_median_service_and_its_interval_holds_it() -> None:
    quiet = ((1.0, 1.0), (1.0, 2.0), (1.0, 1.0))
    pairs = [figures.Pair(quiet, tuple(tuple(x * times for x in each) for each in quiet)) for times in (1, 1.2, 5)]
    found = figures.ratio_interval(pairs)
    assert found is not None
    assert found.median == pytest.approx(1.2)
    assert found.low <= found.median <= found.high


def test_without_latencies_on_both_sides_there_is_no_ratio() -> None:
    assert figures.ratio_interval([]) is None
    assert figures.ratio_interval([figures.Pair(((1.0,),), ((),))]) is None


KERNEL_SPANS = st.tuples(st.sampled_from([ONLINE, OFFLINE]), st.integers(0, 900), st.integers(1, 300))


@given(spans=st.lists(KERNEL_SPANS, max_size=30), parts=st.integers(1, 5))
def test_a_folded_log_says_the_same_as_the_log(spans: list[tuple[int, int, int]], parts: int) -> None:
    log = sorted((kernel(pid, at, at + length) for pid, at, length in spans), key=lambda each: each.ended_ns)
    tally = figures.Tally(0)
    for part in range(parts):  # the log is read in pieces
        tally.take(log[part * len(log) // parts : (part + 1) * len(log) // parts])
    window = {"start_ns": 100 * MS, "end_ns": 1000 * MS}
    for pids in ({ONLINE}, {OFFLINE}, {ONLINE, OFFLINE}):
        assert tally.busy(pids, 100 * MS, 1000 * MS) == device_busy(log, 100 * MS, 1000 * MS, pids=pids)
        kernels = figures.kernels(log, pids)
        assert tally.work_ns(pids, **window) == pytest.approx(figures.work_ns(kernels, **window), abs=1.0)
    share = tally.offline_share(online={ONLINE}, offline={OFFLINE}, **window)
    assert (share or 0.0) == pytest.approx(
        figures.offline_share(log, online={ONLINE}, offline={OFFLINE}, **window), abs=1e-6
    )


def test_what_was_cancelled_or_never_started_is_no_work() -> None:
    never = msgspec.structs.replace(kernel(OFFLINE, 0, 10), started_ns=None)
    cancelled = msgspec.structs.replace(kernel(OFFLINE, 0, 10), cancelled=True)
    tally = figures.Tally(0)
    tally.take([never, cancelled])
    assert tally.work_ns({OFFLINE}, 0, 100 * MS) == 0
    assert tally.busy({OFFLINE}, 0, 100 * MS) == ((0, 10 * MS),)
    assert tally.pids() == {OFFLINE}
