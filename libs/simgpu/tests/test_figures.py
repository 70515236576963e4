"""The figures of the protection benchmark, held to logs whose figures are known."""

from __future__ import annotations

import pytest

from muxflow_simgpu import Operation, OperationKind, figures

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
