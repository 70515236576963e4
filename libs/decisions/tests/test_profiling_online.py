"""An online service by time of day, and the forecast of its peak."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow.contracts import OnlineProfile
from muxflow_decisions.profiling import ForecastPolicy, OnlineSample, Service, online
from muxflow_decisions.profiling.spread import Spread, merged, resembling

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
DAY = 1440 * MINUTE
MIDNIGHT = 20_000 * DAY
POLICY = ForecastPolicy()


def sample(at_ns: int, activity_pct: float, gpu: str = "GPU-1", memory_bytes: int | None = None) -> OnlineSample:
    return OnlineSample(gpu=gpu, time_ns=MIDNIGHT + at_ns, activity_pct=activity_pct, memory_bytes=memory_bytes)


def fed(samples: Iterable[OnlineSample], memory: Service | None = None, policy: ForecastPolicy = POLICY) -> Service:
    memory = memory or Service()
    for each in samples:
        memory = online.take(memory, each, policy=policy)
        online.validate(memory, policy)
    return memory


def during(begin_ns: int, end_ns: int, activity_pct: float, *, every_s: int = 5) -> list[OnlineSample]:
    return [sample(at_ns, activity_pct) for at_ns in range(begin_ns, end_ns, every_s * SECOND)]


def peak_pct(memory: Service, at_ns: int, policy: ForecastPolicy = POLICY) -> float | None:
    expected = online.forecast(memory, now_ns=MIDNIGHT + at_ns, policy=policy)
    return expected.peak_pct if expected is not None else None


def profile(memory: Service, at_ns: int, policy: ForecastPolicy = POLICY) -> OnlineProfile:
    event = online.profile(memory, workload="chat", gpu_kind="A100", now_ns=MIDNIGHT + at_ns, policy=policy)
    return msgspec.convert(msgspec.to_builtins(event), OnlineProfile)


# --- spreads


values = st.lists(st.floats(0, 100), min_size=1, max_size=200)


def spread(readings: Iterable[float]) -> Spread:
    found = Spread()
    for each in readings:
        found = found.added(each)
    return found


@given(values, st.floats(0.01, 1))
def test_a_quantile_is_the_true_one_and_less_than_a_per_cent_above(readings: list[float], part: float) -> None:
    ordered = sorted(readings)
    truth = next(each for n, each in enumerate(ordered, start=1) if n >= part * len(ordered) - 1e-9)
    found = spread(readings).quantile_pct(part)
    assert found is not None
    assert truth <= found <= truth + 1


@given(values, values, st.floats(0.01, 1))
def test_spreads_that_are_merged_are_the_spread_of_all(one: list[float], other: list[float], part: float) -> None:
    both, whole = merged([spread(one), spread(other)]), spread(one + other)
    assert both.quantile_pct(part) == whole.quantile_pct(part)
    assert both.mean_pct == pytest.approx(whole.mean_pct)


@given(values)
def test_what_is_told_of_a_spread_makes_one_with_the_same_percentile(readings: list[float]) -> None:
    told = spread(readings)
    assert told.p99_pct is not None
    again = resembling(mean_pct=told.mean_pct, p99_pct=told.p99_pct, weight=100, memory_peak_bytes=7)
    assert again.p99_pct == told.p99_pct
    assert again.memory_peak_bytes == 7
    assert again.mean_pct is not None
    assert told.mean_pct is not None
    assert abs(again.mean_pct - told.mean_pct) <= 2.0 + 1e-9


def test_nothing_has_no_quantile() -> None:
    assert Spread().p99_pct is None
    assert merged([]).mean_pct is None


# --- forecasts


def test_nothing_is_expected_of_a_service_that_nobody_has_seen() -> None:
    assert peak_pct(Service(), 0) is None
    event = profile(Service(), 0)
    assert (event.forecast_peak_pct, event.forecast_until_ns, event.gpus, event.intervals) == (None, 0, 0, ())


def test_before_there_is_history_the_last_minutes_and_a_margin_are_expected() -> None:
    memory = fed(during(0, 5 * MINUTE, 30, every_s=1))
    assert peak_pct(memory, 5 * MINUTE) == 30 + POLICY.margin_unknown_pct


def test_one_odd_sample_in_ten_minutes_is_no_peak() -> None:
    memory = fed([*during(0, 5 * MINUTE, 30, every_s=1), sample(5 * MINUTE, 100)])
    assert peak_pct(memory, 5 * MINUTE) == 30 + POLICY.margin_unknown_pct


def test_what_was_at_this_time_yesterday_is_expected_again() -> None:
    yesterday = during(0, 10 * MINUTE, 20) + during(10 * MINUTE, 20 * MINUTE, 80) + during(20 * MINUTE, 60 * MINUTE, 20)
    memory = fed(yesterday + during(DAY - 10 * MINUTE, DAY + MINUTE, 20))
    for at_ns, base in ((1, 80), (9, 80), (10, 80), (19, 80), (30, 20)):
        expected = peak_pct(memory, DAY + at_ns * MINUTE)
        assert expected is not None
        assert base <= expected <= min(100, base + POLICY.margin_max_pct)


def test_a_forecast_lasts_until_the_end_of_the_next_interval() -> None:
    memory = fed(during(0, 5 * MINUTE, 30))
    for at_minute, until_minute in ((0, 20), (9, 20), (10, 30)):
        expected = online.forecast(memory, now_ns=MIDNIGHT + at_minute * MINUTE, policy=POLICY)
        assert expected is not None
        assert expected.until_ns == MIDNIGHT + until_minute * MINUTE


def test_the_last_minutes_are_forgotten_and_the_day_is_not() -> None:
    memory = fed(during(0, 10 * MINUTE, 70))
    assert peak_pct(memory, 60 * MINUTE) is None
    assert peak_pct(memory, DAY - 5 * MINUTE) == 70 + POLICY.margin_unknown_pct  # the next interval is the first


def test_older_days_weigh_less() -> None:
    policy = ForecastPolicy(day_weight=0.1)
    days = [
        *during(0, 10 * MINUTE, 90),
        *(each for day in (1, 2, 3) for each in during(day * DAY, day * DAY + 10 * MINUTE, 20)),
    ]
    memory = fed(days, policy=policy)
    assert peak_pct(memory, 4 * DAY, policy) == 20 + policy.margin_unknown_pct


def test_errors_of_the_past_become_the_margin() -> None:
    """A load that grows by 5 points from one interval to the next: each forecast is 5 points too low."""
    memory = fed(each for n in range(12) for each in during(n * 10 * MINUTE, (n + 1) * 10 * MINUTE, 5 + 5 * n))
    event = profile(memory, 120 * MINUTE - SECOND)
    assert event.forecast_error_pct == 5
    assert event.forecasts == 10
    assert event.forecast_peak_pct == 60 + 5
    even = fed(during(0, 120 * MINUTE, 40))
    assert profile(even, 120 * MINUTE - SECOND).forecast_error_pct == 0
    assert peak_pct(even, 120 * MINUTE - SECOND) == 40


def test_gpus_of_one_service_are_taken_together() -> None:
    calm = [sample(n * SECOND, 10, gpu="GPU-1", memory_bytes=5) for n in range(300)]
    busy = [sample(n * SECOND, 60, gpu="GPU-2", memory_bytes=9) for n in range(300)]
    event = profile(fed(calm + busy), 5 * MINUTE)
    assert (event.gpus, event.activity_pct_mean, event.activity_pct_p99, event.memory_peak_bytes) == (2, 35, 60, 9)
    (interval,) = event.intervals
    assert (interval.start_minute, interval.samples, interval.activity_pct_p99) == (0, 600, 60)


# --- late, twice


histories = st.lists(
    st.tuples(st.integers(0, 3 * 1440), st.integers(0, 59), st.floats(0, 100), st.sampled_from(["GPU-1", "GPU-2"])),
    min_size=1,
    max_size=120,
).map(lambda found: [sample(m * MINUTE + s * SECOND, value, gpu) for m, s, value, gpu in sorted(found)])


@given(histories, st.integers(0, 40))
def test_a_forecast_is_bounded_and_at_least_what_was_seen_lately(samples: list[OnlineSample], later: int) -> None:
    memory = fed(samples)
    event = profile(memory, samples[-1].time_ns - MIDNIGHT + later * MINUTE)
    if event.activity_pct_p99 is not None:
        assert event.forecast_peak_pct is not None
        assert event.activity_pct_p99 <= event.forecast_peak_pct
    if event.forecast_peak_pct is not None:
        assert 0 <= event.forecast_peak_pct <= 100
        assert event.forecast_until_ns > event.time_ns


@given(histories)
def test_samples_that_come_again_change_nothing(samples: list[OnlineSample]) -> None:
    memory = fed(samples)
    assert fed(samples, memory) is memory


def test_what_comes_later_than_an_interval_is_not_counted() -> None:
    memory = fed([sample(0, 10), sample(30 * MINUTE, 10)])
    for at_ns, gpu in ((19 * MINUTE, "GPU-1"), (19 * MINUTE, "GPU-2")):
        assert fed([sample(at_ns, 90, gpu)], memory) is memory
    assert fed([sample(29 * MINUTE, 90, "GPU-2")], memory) is not memory


# --- a restart


@given(histories, st.integers(0, 25))
def test_a_profiler_that_begins_with_the_last_event_expects_the_same(samples: list[OnlineSample], later: int) -> None:
    at_ns = samples[-1].time_ns - MIDNIGHT
    event = profile(fed(samples), at_ns)
    again = online.restore(event, stored_ns=MIDNIGHT + at_ns, policy=POLICY)
    online.validate(again, POLICY)
    assert profile(again, at_ns).forecast_peak_pct == event.forecast_peak_pct
    assert profile(again, at_ns).activity_pct_p99 == event.activity_pct_p99
    assert (profile(again, at_ns).forecast_error_pct, profile(again, at_ns).forecasts) == (
        event.forecast_error_pct,
        event.forecasts,
    )


def test_telemetry_that_is_replayed_after_a_restart_is_counted_once() -> None:
    samples = during(0, 20 * MINUTE, 40)
    event = profile(fed(samples), 20 * MINUTE - SECOND)
    again = fed(samples[-150:], online.restore(event, stored_ns=samples[-1].time_ns, policy=POLICY))
    assert [each.samples for each in profile(again, 20 * MINUTE).intervals] == [120, 120]
    more = fed(during(20 * MINUTE, 21 * MINUTE, 40), again)
    assert [each.samples for each in profile(more, 21 * MINUTE).intervals] == [120, 120, 12]


def test_intervals_of_another_length_are_left_out_after_a_restart() -> None:
    event = profile(fed(during(0, 20 * MINUTE, 40)), 20 * MINUTE)
    again = online.restore(event, stored_ns=MIDNIGHT + 20 * MINUTE, policy=ForecastPolicy(interval_minutes=30))
    assert again.slots == {}
    assert peak_pct(again, 20 * MINUTE, ForecastPolicy(interval_minutes=30)) == 50


# --- what is told


def test_what_does_not_matter_is_no_news() -> None:
    noise = random.Random(1)
    memory = fed(sample(n * SECOND, noise.uniform(20, 30)) for n in range(8 * 60))
    before = profile(memory, 8 * MINUTE)
    calm = fed([sample(8 * MINUTE, 25.0)], memory)
    assert not online.is_news(before, profile(calm, 8 * MINUTE))
    assert online.is_news(None, before)
    assert online.is_news(before, profile(calm, 10 * MINUTE))  # another forecast
    gone = profile(calm, 60 * MINUTE)
    assert online.is_news(before, gone)
    assert not online.is_news(gone, profile(calm, 120 * MINUTE))
    busy = fed((sample(8 * MINUTE + n * SECOND, 90.0) for n in range(60)), memory)
    assert online.is_news(before, profile(busy, 9 * MINUTE))


def test_intervals_that_do_not_fill_a_day_are_refused() -> None:
    with pytest.raises(ValueError, match="interval_minutes"):
        ForecastPolicy(interval_minutes=7)
