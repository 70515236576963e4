"""When a job that runs alone has been measured well enough."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muxflow.contracts import DeviceCondition, GpuSample, OfflineProfile, OfflineUsage
from muxflow_decisions.profiling import (
    Ended,
    Measuring,
    ProfilePolicy,
    Reading,
    Sample,
    Step,
    Surroundings,
    Verdict,
    alone,
    disturbance,
    step,
)

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
GIB, MIB = 2**30, 2**20
POLICY = ProfilePolicy()
HEALTHY = GpuSample(
    gpu="GPU-1",
    state=DeviceCondition.HEALTHY,
    utilization_pct=88.0,
    sm_activity_pct=60.0,
    budget_permille=900,
    online_activity_pct=0.0,
)


def usage(launches: int, **changes: int) -> OfflineUsage:
    """Half a millisecond of device time for each launch."""
    values = {"busy_us": 500 * launches, "throttled_us": 0, "frozen_us": 0, "refused_bytes": 0, "memory_bytes": GIB}
    return OfflineUsage(tenant="t", job="j", attempt=1, launches=launches, **(values | changes))


def sample(at_s: float, launches: int, *, gpu: GpuSample = HEALTHY, why: str = "", **changes: int) -> Sample:
    return Sample(time_ns=START + round(at_s * SECOND), usage=usage(launches, **changes), gpu=gpu, disturbance=why)


def running(rates: Sequence[float], *, begins_s: int = 3) -> list[Sample]:
    """A program that launches nothing at first, and then so many kernels in each second."""
    found = [sample(at_s, 0) for at_s in range(begins_s)]
    total = 0.0
    for number, rate in enumerate(rates):
        total += rate
        found.append(sample(begins_s + number, round(total)))
    return found


def measure(
    samples: Iterable[Sample | Ended], *, bounded: bool = True, policy: ProfilePolicy = POLICY
) -> tuple[Verdict | None, float, Measuring]:
    """The verdict, when it came (seconds after the start), and the memory."""
    memory, newest_s = Measuring(bounded=bounded), 0.0
    for stimulus in samples:
        if isinstance(stimulus, Sample):
            newest_s = (stimulus.time_ns - START) / SECOND
        outcome = alone.advance(memory, stimulus, policy=policy)
        memory = outcome.memory
        alone.validate(memory)
        if outcome.verdict is not None:
            return outcome.verdict, newest_s, memory
    return None, newest_s, memory


def failure(verdict: Verdict | None) -> str:
    assert verdict is not None
    assert verdict.failure is not None
    return verdict.failure


# --- rates


counters = st.builds(
    usage,
    st.integers(0, 2**40),
    busy_us=st.integers(0, 2**40),
    throttled_us=st.integers(0, 2**40),
    frozen_us=st.integers(0, 2**40),
    refused_bytes=st.integers(0, 2**40),
)
readings = st.builds(Reading, time_ns=st.integers(0, 10**12), usage=counters)


@given(readings, readings)
def test_nothing_of_a_step_is_negative_whatever_the_totals_say(before: Reading, after: Reading) -> None:
    used = step(before, after)
    if used is not None:
        assert used.seconds > 0
        assert min(used.launches, used.busy_us, used.throttled_us, used.frozen_us, used.refused_bytes) >= 0
        assert used.launches_per_s >= 0
    assert step(before, before) is None


# --- a steady program


def test_a_steady_program_is_known_after_its_start_up_and_the_least_time() -> None:
    verdict, at_s, _ = measure(running([1800] * 60))
    assert at_s == 3 + 2 + 5
    assert verdict is not None
    assert verdict.failure is None
    figures = verdict.figures
    assert figures is not None
    assert (figures.launches_per_s, figures.launches_relative_error) == (1800, 0)
    assert (figures.busy_permille, figures.kernel_time_us_mean) == (900, 500)
    assert (figures.utilization_pct, figures.sm_activity_pct, figures.sm_occupancy_pct) == (88, 60, None)
    assert (figures.memory_peak_bytes, figures.measured_s, figures.samples) == (GIB, 5, 5)


@given(st.integers(10, 100_000), st.integers(0, 20), st.booleans())
def test_every_steady_program_is_known_in_the_least_time(rate: int, begins_s: int, bounded: bool) -> None:
    verdict, at_s, _ = measure(running([rate] * 60, begins_s=begins_s), bounded=bounded)
    assert verdict is not None
    assert verdict.failure is None
    assert at_s == begins_s + POLICY.startup_s + POLICY.least_s


def test_what_came_before_the_program_had_settled_does_not_count() -> None:
    slow_at_first = [10, 200] + [1000] * 10
    figures = alone_figures(running(slow_at_first))
    assert figures.launches_per_s == 1000


def alone_figures(samples: Iterable[Sample]) -> Any:
    verdict, _, _ = measure(samples)
    assert verdict is not None
    assert verdict.failure is None, verdict.failure
    return verdict.figures


def test_a_program_that_launches_in_bursts_is_known_by_its_mean() -> None:
    every_third_second = [3000.0, 0.0, 0.0] * 30
    figures = alone_figures(running(every_third_second))
    assert figures.launches_per_s == pytest.approx(1000, rel=0.1)


def test_a_program_whose_memory_grows_is_not_known_until_it_stops_growing() -> None:
    growing = [
        msgspec.structs.replace(each, usage=usage(each.usage.launches, memory_bytes=min(n, 20) * 100 * MIB))
        for n, each in enumerate(running([1000] * 60), start=1)
    ]
    verdict, at_s, _ = measure(growing)
    assert verdict is not None
    assert verdict.failure is None
    assert at_s == 19 + POLICY.memory_samples
    assert verdict.figures is not None
    assert verdict.figures.memory_peak_bytes == 2000 * MIB


# --- a program that is never known


@settings(max_examples=30)
@given(st.floats(1.1, 2.0), st.integers(100, 1000))
def test_a_program_that_never_settles_is_given_up_after_the_longest_time_and_no_earlier(
    growth: float, first: int
) -> None:
    verdict, at_s, _ = measure(running([first * growth ** (n % 40) for n in range(90)]))
    assert "launches/s ±" in failure(verdict)
    assert at_s == 3 + POLICY.longest_s


def test_words_of_failure_have_numbers() -> None:
    for samples, told in (
        ([sample(n, 0) for n in range(200)], "launched nothing within 120 s"),
        (running([100] + [0] * 80), "it launches nothing any more, after 60 s"),
        (running([1.3**n for n in range(80)]), r"\d+ launches/s ± \d+ %, after 60 s"),
        (
            [sample(n, 1000 * n, refused_bytes=(n > 4) * 300 * MIB) for n in range(9)],
            "asked for 300 MiB more than its quota",
        ),
        (
            [sample(n, 1000 * n, why="chat is served there") for n in range(99)],
            r"0\.0 s count of the 5 s that are needed \(chat is served there\), after 60 s",
        ),
        (
            [sample(n, 1000 * n, memory_bytes=n * 100 * MIB) for n in range(99)],
            r"its memory grows: 6100 MiB, after 60 s",
        ),
    ):
        words = failure(measure(samples)[0])
        assert re.fullmatch(told, words), words


def test_a_program_that_asks_for_more_than_its_quota_fails_at_once() -> None:
    verdict, at_s, _ = measure([sample(n, 10 * n, refused_bytes=(n >= 2) * MIB) for n in range(60)])
    assert at_s == 2
    assert failure(verdict) == "asked for 1 MiB more than its quota"


# --- the end of an attempt


def test_one_that_ends_before_it_is_known_has_ended_too_early() -> None:
    told = failure(measure([*running([1000] * 5), Ended(interrupted=False)])[0])
    assert told == "ended too early: 2.0 s count of the 5 s that are needed"


def test_one_that_somebody_stopped_says_nothing_about_the_job() -> None:
    verdict, _, memory = measure([*running([1000] * 5), Ended(interrupted=True)])
    assert verdict is None
    assert memory.over


def test_one_that_launched_nothing_fails_where_a_gpu_was_kept_for_it_and_is_nobodys_news_elsewhere() -> None:
    nothing = [sample(n, 0) for n in range(4)]
    assert failure(measure([*nothing, Ended(interrupted=False)])[0]) == "ended, and had launched nothing"
    assert measure([*nothing, Ended(interrupted=False)], bounded=False)[0] is None


def test_one_that_ran_beside_a_service_for_its_own_sake_has_not_failed() -> None:
    beside = [sample(n, 1000 * n, why="chat is served there") for n in range(100)]
    assert measure([*beside, Ended(interrupted=False)], bounded=False)[0] is None
    assert "count" in failure(measure([*beside[:9], Ended(interrupted=False)], bounded=True)[0])


def test_after_a_verdict_nothing_changes() -> None:
    verdict, _, memory = measure(running([1000] * 20))
    assert verdict is not None
    assert memory.over
    outcome = alone.advance(memory, sample(100, 10**6, refused_bytes=1), policy=POLICY)
    assert outcome.memory is memory
    assert outcome.verdict is None


# --- what does not count


def disturbed(
    samples: Sequence[Sample], when: Callable[[float], bool], why: str = "chat is served there"
) -> list[Sample]:
    return [
        msgspec.structs.replace(each, disturbance=why) if when((each.time_ns - START) / SECOND) else each
        for each in samples
    ]


def test_time_beside_a_service_does_not_count() -> None:
    rates = [1000.0] * 5 + [100.0] * 10 + [1000.0] * 20
    figures = alone_figures(disturbed(running(rates), lambda at_s: 8 <= at_s < 18))
    assert figures.launches_per_s == 1000
    assert figures.measured_s == 5


def test_frozen_time_does_not_count() -> None:
    samples = running([1000.0] * 5 + [0.0] * 5 + [1000.0] * 20)
    frozen = [
        msgspec.structs.replace(
            each, usage=usage(each.usage.launches, frozen_us=round(max(0, min(5, at_s - 7)) * 1_000_000))
        )
        for each in samples
        for at_s in [(each.time_ns - START) / SECOND]
    ]
    assert alone_figures(frozen).launches_per_s == 1000
    assert measure(samples)[0] is None or alone_figures(samples).launches_per_s < 1000


def test_throttled_time_counts_for_a_program_that_keeps_the_queue_full_waits_all_the_time() -> None:
    samples = [
        msgspec.structs.replace(each, usage=usage(each.usage.launches, throttled_us=900 * each.usage.launches))
        for each in running([1000] * 20)
    ]
    assert alone_figures(samples).launches_per_s == 1000


def test_counters_that_fall_cost_one_step() -> None:
    samples = running([1000] * 20)
    fallen = [
        msgspec.structs.replace(each, usage=usage(max(0, each.usage.launches - 4500))) if n >= 9 else each
        for n, each in enumerate(samples)
    ]
    figures = alone_figures(fallen)
    assert (figures.launches_per_s, figures.measured_s) == (1000, 5)


def test_a_short_gap_in_telemetry_is_one_long_step_and_a_long_one_does_not_count() -> None:
    samples = running([1000] * 40)
    assert alone_figures(samples[:7] + samples[9:]).launches_per_s == 1000
    assert measure(samples[:7] + samples[9:])[1] == 12
    assert measure(samples[:8] + samples[18:])[1] == 18 + 3


@pytest.mark.parametrize(
    ("gpu", "around", "told"),
    [
        ({}, {}, ""),
        ({}, {"sm_share_pct": 90}, ""),
        ({"budget_permille": None, "online_activity_pct": None}, {}, ""),
        ({}, {"workload": "chat"}, "chat is served there"),
        ({}, {"online_known": False}, "it is not known who is served there"),
        ({}, {"others": 1}, "another job is there"),
        ({}, {"sm_share_pct": 30}, "it has 30 % of the SMs"),
        ({"state": DeviceCondition.UNHEALTHY}, {}, "the device is unhealthy"),
        ({"state": None}, {}, "nobody watches the device"),
        ({"budget_permille": 400}, {}, "the budget is 40 %"),
        ({"online_activity_pct": 33.0}, {}, "online activity is 33 %"),
    ],
)
def test_who_is_alone_and_at_full_speed(gpu: dict[str, Any], around: dict[str, Any], told: str) -> None:
    sight = msgspec.structs.replace(HEALTHY, **gpu)
    assert disturbance(sight, Surroundings(**around), POLICY) == told


# --- late, twice, out of order


@st.composite
def telemetry(draw: st.DrawFn) -> tuple[list[Sample], list[Sample]]:
    """A measurement's samples, and the same in another order with repetitions."""
    rates = draw(st.lists(st.floats(0, 2000), min_size=1, max_size=30))
    whys = draw(st.lists(st.sampled_from(["", "", "", "chat is served there"]), min_size=33, max_size=33))
    samples = [msgspec.structs.replace(each, disturbance=why) for each, why in zip(running(rates), whys, strict=False)]
    again = draw(st.lists(st.sampled_from(samples), max_size=10))
    return samples, draw(st.permutations(samples + again))


@given(telemetry())
def test_the_order_of_samples_and_repetitions_do_not_matter(both: tuple[list[Sample], list[Sample]]) -> None:
    def all_taken(samples: list[Sample]) -> Measuring:
        memory = Measuring(bounded=True)
        for each in samples:
            memory = alone._taken(memory, each, POLICY)
            alone.validate(memory)
        return memory

    ordered, shuffled = map(all_taken, both)
    assert ordered == shuffled
    assert alone._judged(ordered, POLICY) == alone._judged(shuffled, POLICY)


@given(telemetry(), st.booleans())
def test_figures_are_within_their_ranges_whatever_comes(both: tuple[list[Sample], list[Sample]], bounded: bool) -> None:
    verdict, _, memory = measure([*both[1], Ended(interrupted=False)], bounded=bounded)
    assert memory.over
    assert len(memory.samples) <= len(both[0])
    if verdict is not None:
        told = alone.profile(verdict, key="t/j", gpu_kind="T4", sm_share_pct=None)
        msgspec.convert(msgspec.to_builtins(told), OfflineProfile)
        assert told.confident == (verdict.failure is None)


def test_a_measurement_of_hours_keeps_minutes_of_samples() -> None:
    memory = Measuring(bounded=False)
    for n in range(5000):
        memory = alone.advance(memory, sample(n, 1000 * n, why="chat is served there"), policy=POLICY).memory
    assert len(memory.samples) < 130
    (line,) = alone.story(memory, POLICY)
    assert line.split(maxsplit=2) == ["124.0", "s", "chat is served there"]


# --- the error of a rate


@given(st.lists(st.integers(1, 5000), min_size=5, max_size=80))
def test_the_error_is_never_negative_and_none_for_what_is_even(launches: list[int]) -> None:
    steps = [
        Step(seconds=1.0, launches=each, busy_us=0, throttled_us=0, frozen_us=0, refused_bytes=0) for each in launches
    ]
    error = alone.relative_error(steps, windows=5)
    assert error is not None
    assert error >= 0
    even = alone.relative_error([steps[0]] * len(steps), windows=5)
    assert even is not None
    assert math.isclose(even, 0, abs_tol=1e-9)
    assert alone.relative_error(steps[:4], windows=5) is None


# --- which profile stays


def told(**changes: Any) -> OfflineProfile:
    good = OfflineProfile(
        key="t/j", gpu_kind="T4", launches_per_s=1000.0, memory_peak_bytes=GIB, confident=True, sm_share_pct=90
    )
    return msgspec.structs.replace(good, **changes)


@pytest.mark.parametrize(
    ("old", "new", "replaced"),
    [
        (None, told(), True),
        (None, told(confident=False, failure="ended"), True),
        (told(confident=False, failure="ended"), told(), True),
        (told(), told(confident=False, failure="ended"), False),
        (told(confident=False, failure="a"), told(confident=False, failure="a"), False),
        (told(confident=False, failure="a"), told(confident=False, failure="b"), True),
        (told(), told(launches_per_s=1050.0), False),
        (told(), told(launches_per_s=1200.0), True),
        (told(), told(memory_peak_bytes=2 * GIB), True),
        (told(), told(sm_share_pct=None), True),
        (told(sm_share_pct=None), told(launches_per_s=500.0), False),
    ],
)
def test_a_profile_gives_way_to_a_better_one_and_to_news(
    old: OfflineProfile | None, new: OfflineProfile, replaced: bool
) -> None:
    assert alone.replaces(old, new, POLICY) is replaced


def test_a_policy_under_which_nothing_could_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="least_s"):
        ProfilePolicy(least_s=70)
