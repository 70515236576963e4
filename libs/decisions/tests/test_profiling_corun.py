"""A job beside a service: how much of its speed alone is left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow.contracts import CorunProfile, DeviceCondition, GpuSample, OfflineProfile, OfflineUsage
from muxflow_decisions.profiling import Beside, CorunPolicy, CorunWindow, corun

SECOND = 1_000_000_000
GIB = 2**30
POLICY = CorunPolicy()
FULL = {"memory_used_bytes": 16 * GIB - 1, "memory_total_bytes": 16 * GIB}
ALONE = OfflineProfile(key="t/j", gpu_kind="T4", launches_per_s=1000.0, confident=True)
PAIR = CorunProfile(offline_key="t/j", workload="chat", gpu_kind="T4", sm_share_pct=50)


def sample(at_s: float, launches: int, *, refused_bytes: int = 0, frozen_us: int = 0, **gpu: Any) -> corun.BesideSample:
    usage = OfflineUsage(
        tenant="t",
        job="j",
        attempt=1,
        launches=launches,
        busy_us=0,
        throttled_us=0,
        frozen_us=frozen_us,
        refused_bytes=refused_bytes,
        memory_bytes=GIB,
    )
    values: dict[str, Any] = {"state": DeviceCondition.HEALTHY, "online_activity_pct": 40.0} | gpu
    return corun.BesideSample(time_ns=round(at_s * SECOND), usage=usage, gpu=GpuSample(gpu="GPU-1", **values))


def windows(samples: Iterable[corun.BesideSample], memory: Beside | None = None) -> list[CorunWindow]:
    memory, found = memory or Beside(), []
    for each in samples:
        outcome = corun.advance(memory, each, policy=POLICY)
        memory = outcome.memory
        corun.validate(memory)
        if outcome.window is not None:
            found.append(outcome.window)
    return found


def merged(
    found: Iterable[CorunWindow], known: CorunProfile = PAIR, alone: OfflineProfile | None = ALONE
) -> CorunProfile:
    for window in found:
        known = corun.merge(known, window, alone=alone, sm_share_pct=known.sm_share_pct, policy=POLICY)
    return msgspec.convert(msgspec.to_builtins(known), CorunProfile)


def test_throughput_is_relative_to_that_alone() -> None:
    (window,) = windows(sample(n, 600 * n) for n in range(15))
    assert (window.seconds, window.launches_per_s, window.online_activity_pct, window.fits) == (10, 600, 40, True)
    told = merged([window])
    assert (told.normalized_throughput, told.online_activity_pct, told.fits) == (0.6, 40, True)
    assert (told.measured_s, told.samples, told.sm_share_pct) == (10, 10, 50)


def test_frozen_time_is_the_loss() -> None:
    half = [sample(n, 1000 * min(n, 8), frozen_us=max(0, n - 8) * 1_000_000) for n in range(14)]
    (window,) = windows(half)
    assert merged([window]).normalized_throughput == pytest.approx(0.5)


def test_start_up_is_left_out() -> None:
    slow_at_first = [sample(n, 10 * n if n < 3 else 20 + 900 * (n - 2)) for n in range(1, 14)]
    assert (windows(slow_at_first)[0].launches_per_s or 0) > 800
    assert windows(sample(n, 0) for n in range(60)) == []


def test_a_gap_or_counters_that_fall_begin_a_window_anew() -> None:
    samples = [sample(n, 600 * n) for n in range(30)]
    assert len(windows(samples)) == 2
    assert len(windows(samples[:8] + samples[14:])) == 1
    fallen = samples[:8] + [sample(n, 600 * (n - 8)) for n in range(8, 30)]
    assert [window.launches_per_s for window in windows(fallen)] == [600, 600]


def test_a_job_that_runs_the_device_out_of_memory_does_not_fit_and_that_is_told_once_and_at_once() -> None:
    over: dict[str, Any] = {"state": DeviceCondition.OVERLIMIT, **FULL}
    samples = [sample(n, 600 * n, **(over if n >= 2 else {})) for n in range(20)]
    first, *others = windows(samples)
    assert (first.fits, first.seconds, first.launches_per_s) == (False, 0, None)
    assert [window.fits for window in others] == [False]
    told = merged([first])
    assert (told.fits, told.normalized_throughput) == (False, None)
    assert merged([first, *others]).normalized_throughput == pytest.approx(0.6)


def test_a_device_without_memory_left_does_not_fit_both() -> None:
    (window,) = windows([sample(1, 100, state=DeviceCondition.OVERLIMIT, **FULL)])
    assert not window.fits
    assert windows([sample(1, 100, **FULL)]) == []
    roomy = {"memory_used_bytes": 8 * GIB, "memory_total_bytes": 16 * GIB}
    assert windows([sample(1, 100, state=DeviceCondition.OVERLIMIT, **roomy)]) == []


def test_a_job_that_asks_for_more_than_its_quota_fits_as_well_as_before() -> None:
    samples = [sample(n, 600 * n, refused_bytes=(n >= 2) * GIB) for n in range(15)]
    assert [window.fits for window in windows(samples)] == [True]


def test_without_a_profile_the_throughput_is_not_known_but_that_both_fit_is() -> None:
    (window,) = windows(sample(n, 600 * n) for n in range(15))
    for alone in (None, OfflineProfile(key="t/j", gpu_kind="T4", failure="ended", launches_per_s=9.0)):
        told = merged([window], alone=alone)
        assert (told.normalized_throughput, told.fits, told.measured_s) == (None, True, 0)


def window(rate: float, *, activity_pct: float | None = 40.0, seconds: float = 10.0) -> CorunWindow:
    return CorunWindow(seconds=seconds, launches_per_s=rate, online_activity_pct=activity_pct, samples=10, fits=True)


def test_the_mean_goes_with_the_present() -> None:
    told = merged([window(1000)] * 600)
    assert (told.normalized_throughput, told.measured_s) == (1, POLICY.memory_s)
    assert merged([window(500)] * 300, told).normalized_throughput == pytest.approx(0.5, abs=0.02)


def test_another_share_is_another_pair() -> None:
    told = merged([window(900)] * 20)
    again = corun.merge(told, window(300), alone=ALONE, sm_share_pct=20, policy=POLICY)
    assert again.normalized_throughput == pytest.approx(0.3)
    assert (again.sm_share_pct, again.measured_s) == (20, 10)
    near = corun.merge(told, window(900), alone=ALONE, sm_share_pct=52, policy=POLICY)
    assert near.measured_s == 210


rates = st.lists(st.integers(0, 5000), min_size=2, max_size=60)


@given(rates, st.randoms(use_true_random=False))
def test_repetitions_and_what_comes_too_late_change_nothing(found: list[int], chance: Any) -> None:
    totals = [sum(found[: n + 1]) for n in range(len(found))]
    samples = [sample(n, total) for n, total in enumerate(totals)]
    noisy = [
        each
        for n, one in enumerate(samples)
        for each in (one, *chance.choices(samples[: n + 1], k=chance.randrange(3)))
    ]
    assert windows(samples) == windows(noisy)


@given(st.lists(st.tuples(st.floats(0, 5000), st.none() | st.floats(0, 100)), min_size=1, max_size=80))
def test_the_mean_lies_between_the_least_and_the_most(found: list[tuple[float, float | None]]) -> None:
    told = merged(window(rate, activity_pct=activity) for rate, activity in found)
    shares = [rate / 1000 for rate, _ in found]
    assert told.normalized_throughput is not None
    assert min(shares) - 1e-9 <= told.normalized_throughput <= max(shares) + 1e-9
    assert 0 < told.measured_s <= POLICY.memory_s


def test_what_has_hardly_moved_is_no_news() -> None:
    told = merged([window(600)] * 10)
    assert corun.is_news(None, told)
    assert not corun.is_news(told, merged([window(610)], told))
    assert corun.is_news(told, merged([window(900)], told))
    assert corun.is_news(told, merged([window(600)] * 10, told))  # twice as sure
    assert corun.is_news(told, msgspec.structs.replace(told, fits=False))
