"""Features, history and what is assumed of a pair's speed."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from muxflow.contracts.profiles import CorunProfile, OfflineProfile, OnlineProfile
from muxflow.contracts.queries import Pair
from muxflow_decisions.speed import (
    FEATURES,
    PAIRS,
    Background,
    Effect,
    MeasuredPair,
    MeasuredPolicy,
    PairFacts,
    PairName,
    absorb,
    alone,
    assumed,
    did_not_fit,
    examples,
    expected,
    facts_of,
    features,
    fits_by_memory,
    held_out,
    in_order,
    learn,
    measured_pair,
    newest_measured,
    speed_measured,
)

GIB = 2**30
DAY_NS = 86_400 * 10**9
percents = st.none() | st.floats(0, 100)
shares = st.none() | st.integers(1, 100)
amounts = st.none() | st.integers(0, 80 * GIB)
facts = st.builds(
    PairFacts,
    gpu_memory_bytes=st.none() | st.integers(1, 80 * GIB),
    memory_bytes=amounts,
    sm_share_pct=shares,
    offline_sm_activity_pct=percents,
    offline_bandwidth_pct=percents,
    offline_memory_bytes=amounts,
    online_activity_pct=percents,
    online_memory_bytes=amounts,
)
effects = st.builds(Effect, residual=st.floats(-1, 1), rows=st.integers(0, 50))
backgrounds = st.builds(Background, workload=effects, job=effects)
names = st.sampled_from("abcd")
rows = st.builds(
    MeasuredPair,
    offline_key=names,
    workload=names,
    gpu_kind=st.sampled_from(["A100", "T4"]),
    facts=facts,
    normalized_throughput=st.none() | st.floats(0, 1),
    fits=st.none() | st.booleans(),
    time_ns=st.integers(0, 10),
)


def share(one: int | None) -> int:
    return 100 if one is None else one


@given(facts, shares, shares)
def test_a_larger_share_is_never_expected_to_be_slower(known: PairFacts, one: int | None, other: int | None) -> None:
    low, high = sorted((one, other), key=share)
    assert expected(replace(known, sm_share_pct=low)) <= expected(replace(known, sm_share_pct=high))


@given(facts, st.floats(0, 100), st.floats(0, 100))
def test_more_online_activity_is_never_expected_to_be_faster(known: PairFacts, one: float, other: float) -> None:
    low, high = sorted((one, other))
    calm, busy = replace(known, online_activity_pct=low), replace(known, online_activity_pct=high)
    assert expected(calm) >= expected(busy)
    assert assumed(calm, fits_probability=1).normalized_throughput >= assumed(busy, fits_probability=1).low


@given(facts, st.floats(0, 1))
def test_what_is_assumed_is_below_what_the_shares_alone_allow_whatever_the_job_is(
    known: PairFacts, fits: float
) -> None:
    speed = assumed(known, fits_probability=fits)
    assert 0 <= speed.low <= speed.normalized_throughput <= speed.high <= 1
    assert speed.normalized_throughput <= expected(known)
    assert speed.normalized_throughput <= share(known.sm_share_pct) / 100
    assert speed.basis == "assumed"


@pytest.mark.parametrize(
    ("known", "speed"),
    [
        (PairFacts(sm_share_pct=50, online_activity_pct=20), 0.5 * 0.8),
        (PairFacts(sm_share_pct=50, online_activity_pct=20, offline_sm_activity_pct=40), 0.8),
        (PairFacts(sm_share_pct=30), 0.3 * 0.5),
        (PairFacts(sm_share_pct=30, offline_sm_share_pct=60), 0.5 * 0.5),
        (PairFacts(sm_share_pct=80, offline_sm_share_pct=60), 0.5),
        (PairFacts(), 0.5),
        (PairFacts(online_activity_pct=100), 0.0),
    ],
)
def test_expected_is_the_share_of_the_sms_that_it_needs_times_the_time_that_is_left(
    known: PairFacts, speed: float
) -> None:
    assert expected(known) == pytest.approx(speed)


def test_with_nobody_beside_the_speed_is_one() -> None:
    assert alone(measured=True, fits_probability=1).basis == "measured"
    assert alone(measured=False, fits_probability=1).normalized_throughput == 1


@given(facts, backgrounds, st.tuples(shares, shares), st.tuples(st.floats(0, 100), st.floats(0, 100)))
def test_no_monotone_feature_moves_the_wrong_way(
    known: PairFacts, background: Background, pcts: tuple[int | None, int | None], activity: tuple[float, float]
) -> None:
    low, high = sorted(pcts, key=share)
    calm, busy = sorted(activity)
    known = replace(known, online_activity_p99_pct=100.0)
    slow = features(replace(known, sm_share_pct=low, online_activity_pct=busy), background)
    fast = features(replace(known, sm_share_pct=high, online_activity_pct=calm), background)
    for feature, before, after in zip(FEATURES, slow, fast, strict=True):
        if feature.monotone:
            assert feature.monotone * after >= feature.monotone * before, feature.name
        else:
            assert before == after or (math.isnan(before) and math.isnan(after)), feature.name


def test_what_is_not_known_is_not_a_number_and_everything_else_is() -> None:
    values = dict(zip(PAIRS.names, features(PairFacts(), Background()), strict=True))
    assert {name for name, value in values.items() if not math.isnan(value)} == {
        "sm_share_pct",
        "expected",
        "workload_residual",
        "workload_rows",
        "job_residual",
        "job_rows",
        "expected_by_history",
    }
    offline = OfflineProfile(
        key="a/j",
        gpu_kind="A100",
        utilization_pct=1,
        sm_activity_pct=2,
        sm_occupancy_pct=3,
        memory_bandwidth_pct=4,
        memory_peak_bytes=5,
        busy_permille=6,
        kernel_time_us_mean=7,
        launches_per_s=8,
    )
    online = OnlineProfile(
        workload="w", gpu_kind="A100", activity_pct_mean=9, activity_pct_p99=10, memory_peak_bytes=11
    )
    full = facts_of(_pair(sm_share_pct=12, gpu_memory_bytes=100), offline, online)
    assert not any(map(math.isnan, features(full, Background())))
    failed = facts_of(_pair(), replace(offline, failure="ended too early"), None)
    assert failed == PairFacts(memory_bytes=GIB)


def test_a_measurement_carries_the_activity_of_its_own_time() -> None:
    online = OnlineProfile(workload="w", gpu_kind="A100", activity_pct_mean=10, activity_pct_p99=80)
    corun = CorunProfile(
        offline_key="a/j",
        workload="w",
        gpu_kind="A100",
        sm_share_pct=40,
        online_activity_pct=30,
        normalized_throughput=0.5,
        measured_s=12,
    )
    row = measured_pair(corun, None, online, gpu_memory_bytes=8 * GIB)
    assert row is not None
    assert row.facts.online_activity_pct == 30
    assert row.facts.sm_share_pct == 40
    assert row.name == PairName("a/j", "w", "A100")
    nothing = replace(corun, normalized_throughput=None)
    assert measured_pair(nothing, None, online, gpu_memory_bytes=None) is None


@given(facts, st.integers(0, 80 * GIB))
def test_fitting_is_a_probability_that_falls_with_what_is_asked_for(known: PairFacts, more: int) -> None:
    larger = replace(known, memory_bytes=(known.memory_bytes or 0) + more)
    assert 0 <= fits_by_memory(larger) <= fits_by_memory(known) <= 1


@pytest.mark.parametrize(
    ("known", "probability"),
    [
        (PairFacts(gpu_memory_bytes=100, memory_bytes=40, online_memory_bytes=50), 1.0),
        (PairFacts(gpu_memory_bytes=100, memory_bytes=46, online_memory_bytes=50), 0.5),
        (PairFacts(gpu_memory_bytes=100, memory_bytes=51, online_memory_bytes=50), 0.0),
        (PairFacts(gpu_memory_bytes=100, memory_bytes=40), 1.0),
        (PairFacts(gpu_memory_bytes=100, memory_bytes=60), 0.0),
        (PairFacts(memory_bytes=60), 1.0),
    ],
)
def test_both_fit_if_there_is_room_for_the_quota_beside_the_service(known: PairFacts, probability: float) -> None:
    assert fits_by_memory(known) == pytest.approx(probability)


def test_one_measurement_tells_a_sensitive_job_from_a_robust_one() -> None:
    measured = [_row(f"job-{n}", "w", 0.5) for n in range(9)] + [_row("robust", "w", 0.9), _row("sensitive", "w", 0.1)]
    history = learn(measured, lambda _: 0.5)
    assert abs(history.of("job-1", "w", "A100").workload.residual) < 0.01
    assert history.of("robust", "new", "A100").job.residual > 0.15
    assert history.of("sensitive", "new", "A100").job.residual < -0.15
    assert history.of("job-1", "new", "A100").job.rows == 1
    assert history.of("unknown", "new", "A100") == Background()
    assert history.of("robust", "w", "T4") == Background()


@settings(max_examples=30)
@given(st.lists(rows, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_measurements_does_not_matter(measured: list[MeasuredPair], chance: random.Random) -> None:
    shuffled = measured.copy()
    chance.shuffle(shuffled)
    assert in_order(shuffled) == in_order(measured)
    made = examples(measured, PAIRS, seed=1)
    assert repr(examples(shuffled, PAIRS, seed=1)) == repr(made)  # NaN is not equal to itself
    assert len(made) == 4 * sum(row.normalized_throughput is not None for row in measured)


@settings(max_examples=30)
@given(st.lists(rows, min_size=1, max_size=8), st.integers(0, 9))
def test_no_example_has_seen_the_answer(measured: list[MeasuredPair], seed: int) -> None:
    row = measured[0]
    others = [other for other in measured if other.name != row.name]

    def vectors(throughput: float) -> str:
        made = examples([*others, replace(row, normalized_throughput=throughput)], PAIRS, seed=seed)
        return repr([example.values for example in made if example.name == row.name])

    assert vectors(0.0) == vectors(1.0)


def test_a_pair_is_on_one_side_for_ever_and_one_in_five_is_held_out() -> None:
    pairs = [PairName(f"tenant/job-{n}", f"service-{n % 7}", "A100") for n in range(2000)]
    assert 0.17 < sum(map(held_out, pairs)) / len(pairs) < 0.23
    assert held_out(PairName("a/j", "w", "A100")) is held_out(PairName("a/j", "w", "A100"))
    kept = [n for n in range(20) if held_out(PairName("a", f"w{n}", "T4"))]
    assert kept == [2, 12, 14], "the hash must not change: models were judged by these"


def test_the_newest_measurement_answers_for_about_its_share_and_for_a_week() -> None:
    policy = MeasuredPolicy()
    old, new = _row("j", "w", 0.4, time_ns=1), _row("j", "w", 0.6, time_ns=2)
    wide = _row("j", "w", 0.9, time_ns=3, sm_share_pct=90)
    found = newest_measured([new, wide, old], sm_share_pct=45, now_ns=10, policy=policy)
    assert found is new
    assert newest_measured([new, wide], sm_share_pct=None, now_ns=10, policy=policy) is wide
    assert newest_measured([new], sm_share_pct=61, now_ns=10, policy=policy) is None
    assert newest_measured([new], sm_share_pct=40, now_ns=8 * DAY_NS, policy=policy) is None


def test_a_pair_does_not_fit_if_it_did_not_when_that_was_seen_last() -> None:
    policy = MeasuredPolicy()
    unfit = replace(_row("j", "w", 0.4, time_ns=2), fits=False, normalized_throughput=None)
    fitted, unseen = (replace(_row("j", "w", 0.4, time_ns=3), fits=fits) for fits in (True, None))
    assert did_not_fit([unfit, unseen], now_ns=10, policy=policy)
    assert not did_not_fit([fitted, unfit], now_ns=10, policy=policy)
    assert not did_not_fit([unfit], now_ns=8 * DAY_NS, policy=policy)
    assert not did_not_fit([], now_ns=10, policy=policy)


def test_a_longer_measurement_is_surer() -> None:
    short, long = (speed_measured(_row("j", "w", 0.5, measured_s=s), fits_probability=1) for s in (1, 100))
    assert short.low < long.low < 0.5 < long.high < short.high
    assert short.basis == "measured"
    assert speed_measured(_row("j", "w", 0.0), fits_probability=1).low == 0


def test_a_measurement_like_an_earlier_one_takes_its_place_and_another_one_stands_beside_it() -> None:
    policy = MeasuredPolicy(kept_of_a_pair=2)
    first = _row("j", "w", 0.40, time_ns=1)
    kept = absorb((), first, policy)
    assert (kept.rows, kept.changed, kept.new) == ((first,), True, True)
    assert not absorb(kept.rows, first, policy).changed
    assert not absorb(kept.rows, replace(first, time_ns=0), policy).changed, "older news is no news"
    alike = _row("j", "w", 0.43, time_ns=2)
    kept = absorb(kept.rows, alike, policy)
    assert (kept.rows, kept.changed, kept.new) == ((alike,), True, False)
    slower, slowest = _row("j", "w", 0.3, time_ns=3), _row("j", "w", 0.2, time_ns=4)
    kept = absorb(absorb(kept.rows, slower, policy).rows, slowest, policy)
    assert (kept.rows, kept.new) == ((slower, slowest), True)
    other_share = _row("j", "w", 0.2, time_ns=5, sm_share_pct=80)
    assert absorb(kept.rows, other_share, policy).new
    unfit = replace(slowest, time_ns=6, fits=False, normalized_throughput=None)
    assert absorb(kept.rows, unfit, policy).new


@settings(max_examples=50)
@given(st.lists(rows, max_size=20))
def test_what_is_kept_of_a_pair_is_bounded_in_order_and_ends_with_the_newest(measured: list[MeasuredPair]) -> None:
    policy = MeasuredPolicy(kept_of_a_pair=4)
    kept: tuple[MeasuredPair, ...] = ()
    for row in measured:
        kept = absorb(kept, row, policy).rows
    assert len(kept) <= 4
    times = [row.time_ns for row in kept]
    assert times == sorted(set(times))
    assert not measured or times[-1] == max(row.time_ns for row in measured)


def _pair(**known: int) -> Pair:
    return Pair(offline_key="a/j", memory_bytes=GIB, gpu_kind="A100", workload="w", **known)


def _row(
    job: str, workload: str, throughput: float, *, time_ns: int = 0, sm_share_pct: int = 40, measured_s: float = 10
) -> MeasuredPair:
    return MeasuredPair(
        offline_key=job,
        workload=workload,
        gpu_kind="A100",
        facts=PairFacts(sm_share_pct=sm_share_pct, online_activity_pct=20),
        normalized_throughput=throughput,
        measured_s=measured_s,
        time_ns=time_ns,
    )
