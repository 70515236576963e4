"""Figures of a phase, held to observations whose figures are known."""

from __future__ import annotations

import msgspec
import pytest

import seen_run
from muxflow_run import phase, verdicts
from muxflow_run.load import Request
from muxflow_run.report import PhaseFigures
from seen_run import BEGIN, SECONDS, alone, at, beside


@pytest.fixture(scope="module")
def protected() -> PhaseFigures:
    """A job got three quarters of the work done that it would do alone, all of the time."""
    return phase.figures(beside(2.2, work=0.375), alone())


def test_latencies_are_compared_with_those_alone(protected: PhaseFigures) -> None:
    (service,) = protected.services
    assert (service.p50_ms, service.p99_ms, service.requests, service.lost) == (2.2, 2.2, 10 * SECONDS, 0)
    assert service.p99_ratio is not None
    assert (service.p99_ratio.low, service.p99_ratio.ratio, service.p99_ratio.high) == (1.1, 1.1, 1.1)
    assert protected.online_p99_ratio == 1.1


def test_alone_is_compared_with_nothing() -> None:
    found = phase.figures(alone(), None)
    assert found.online_p99_ratio is None
    assert found.services[0].p99_ratio is None
    assert found.jobs_done is None


def test_requests_that_are_lost_have_no_latency_and_are_counted() -> None:
    found = phase.figures(beside(2.2, work=0.1, lost=3), alone())
    assert found.online_requests_lost == 3
    assert found.services[0].seconds[-1].lost == 3
    assert sum(second.requests for second in found.services[0].seconds) == 10 * SECONDS


def test_the_share_is_of_the_online_sides_idle_time(protected: PhaseFigures) -> None:
    t4, h200 = protected.gpus
    assert (t4.offline_share, t4.normalized_throughput) == (0.75, 0.375)  # half of the time is idle
    assert (h200.offline_share, h200.normalized_throughput) == (0.0, 0.0)
    assert protected.offline_share == 0.75  # of GPUs with a service
    assert protected.offline_share_all == 0.25


def test_readings_are_means_of_the_window_and_what_is_not_read_is_null(protected: PhaseFigures) -> None:
    t4, h200 = protected.gpus
    assert (t4.utilization_pct, t4.memory_used_pct, t4.offline_busy_pct, t4.budget_pct) == (60, 25, 45, 90)
    assert t4.sm_activity_pct is None
    assert (h200.sm_activity_pct, h200.utilization_pct) == (10, None)
    assert "T4 #0" in protected.missing["sm_activity_pct"]
    assert len(t4.samples) == SECONDS


def test_freezes_and_evictions_count_once_and_inside_of_the_window(protected: PhaseFigures) -> None:
    assert (protected.freezes, protected.evictions) == (1, 1)


def test_jobs_that_end_before_the_window_are_done_and_those_after_it_are_not(protected: PhaseFigures) -> None:
    assert protected.jobs_done == 2


def test_a_placement_says_what_was_predicted_and_what_came(protected: PhaseFigures) -> None:
    (placed,) = protected.placements
    assert (placed.job, placed.gpu, placed.service, placed.sm_share_pct) == ("small-1", "T4 #0", "search", 80)
    assert (placed.predicted, placed.basis) == (0.7, "model")
    assert (placed.measured, placed.measured_by) == (0.5, "launches")  # 100 of 200 launches a second
    assert placed.work_per_s == 0.375
    assert (placed.from_s, placed.to_s) == (-2, None)


def test_a_job_that_was_measured_on_another_kind_only_is_compared_by_its_work() -> None:
    seen = beside(2.0, work=0.45)
    events = tuple(
        msgspec.structs.replace(
            each,
            received=msgspec.structs.replace(
                each.received, event=msgspec.structs.replace(each.received.event, gpu_kind="H200")
            ),
        )
        if each.received.kind == "profiles.offline"
        else each
        for each in seen.seen
    )
    (placed,) = phase.figures(msgspec.structs.replace(seen, seen=events), alone()).placements
    assert (placed.measured, placed.measured_by) == (0.5, "device log")  # it kept that one busy for 90% of the time


def test_an_attempt_that_was_there_too_shortly_is_not_measured() -> None:
    seen = beside(2.0, work=0.45)
    short = msgspec.structs.replace(seen, seen=(*seen.seen, seen_run.ended()))
    (placed,) = phase.figures(short, alone()).placements
    assert placed.to_s == 7
    assert placed.measured is not None
    begun_late = tuple(
        msgspec.structs.replace(each, time_ns=at(8)) if each.received.kind == "runs.started" else each
        for each in seen.seen
    )
    (placed,) = phase.figures(msgspec.structs.replace(seen, seen=begun_late), alone()).placements
    assert (placed.measured, placed.work_per_s) == (None, None)


def test_a_solve_is_told_with_its_certificate(protected: PhaseFigures) -> None:
    (solve,) = protected.solves
    assert (solve.at_s, solve.trigger, solve.cost, solve.bound) == (1, "arrival", 7, 7)


def test_on_a_real_gpu_what_needs_the_devices_log_is_null_with_a_reason() -> None:
    found = phase.figures(msgspec.structs.replace(beside(2.0, work=1), tallies={}), alone())
    assert (found.offline_share, found.normalized_throughput) == (None, None)
    assert "real GPU" in found.missing["offline_share, normalized_throughput, work_per_s"]


def test_the_gpus_part_of_a_request_is_the_time_of_its_kernels_without_pauses_between_launches() -> None:
    requests = (Request(BEGIN, at(0.020)), Request(at(0.005), at(0.030)), Request(at(0.040), at(0.050), "gone"))
    queued = [(at(0.001), at(0.004)), (at(0.002), at(0.006))]  # the second one waits for the first
    late = [(at(0.015), at(0.016))]  # launched late: by a busy core, not by the GPU
    others = [(at(0.021), at(0.022)), (at(0.041), at(0.042))]
    before = (BEGIN - 5, BEGIN - 1)
    assert phase.device_ms(requests, [before, *queued, *late, *others]) == pytest.approx([6.0, 1.0])


def test_promises_hold_or_not_beyond_the_noise_of_alone_against_alone(protected: PhaseFigures) -> None:
    phases = {
        "alone": phase.figures(alone(), None),
        "unprotected": phase.figures(beside(6.0, work=1.0), alone()),
        "protected": protected,
        "alone_again": phase.figures(alone(2.1), alone()),
    }
    figures = verdicts.figures(phases)
    assert (figures["online_p99_ratio"], figures["online_p99_ratio_unprotected"]) == (1.1, 3.0)
    latency, loss, share, damage = verdicts.verdicts(figures)
    assert latency.bound == pytest.approx(1.155)
    assert [each.holds for each in (latency, loss, share, damage)] == [True, True, True, True]
    worse = {**figures, "online_p99_ratio": 1.2, "online_requests_lost": 1, "offline_share": 0.59}
    worse["online_p99_ratio_unprotected"] = 1.1
    assert [each.holds for each in verdicts.verdicts(worse)] == [False, False, False, False]
    assert [each.holds for each in verdicts.verdicts(dict.fromkeys(figures))] == [None, None, None, None]
    for noise in (0.7, 1.3):
        noisy = verdicts.verdicts({**figures, "alone_p99_ratio": noise})
        assert [each.holds for each in noisy] == [None, True, True, None]
