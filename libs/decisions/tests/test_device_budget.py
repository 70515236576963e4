"""The budget law by itself, and on a simulated device that it controls through meters as late and coarse as NVML's."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from muxflow.contracts import DeviceCondition
from muxflow_decisions.device import (
    DeviceMemory,
    DevicePolicy,
    GateState,
    MonitorStarted,
    Read,
    Readings,
    advance,
    online_activity_pct,
    validate,
)
from muxflow_decisions.device.budget import BudgetMemory, apply, freeze, largest_permille, online_share_pct, window_us

SECOND = 1_000_000_000
TICK = SECOND // 10
POLICY = DevicePolicy()
LARGEST, SMALLEST = POLICY.budget_max_permille, POLICY.budget_min_permille


def sample(now_ns: int = TICK, activity: float | None = 0.0, **changes: Any) -> Readings:
    return Readings(now_ns=now_ns, online_activity_pct=activity, **({"online_present": True} | changes))


def settled(activity: float | None = 0.0, seconds: float = 20.0, **changes: Any) -> BudgetMemory:
    """Give the law's state after it has seen the same for a long time."""
    memory = freeze(BudgetMemory(), now_ns=0)
    for tick in range(1, int(seconds * 10) + 1):
        memory = apply(memory, sample(tick * TICK, activity, **changes), cap_permille=1000, policy=POLICY)
    return memory


# --- the law


@pytest.mark.parametrize(
    ("activity", "budget"), [(0.0, 900), (5.0, 900), (30.0, 641), (60.0, 330), (90.0, 20), (100.0, 20)]
)
def test_the_budget_is_about_what_the_online_side_leaves(activity: float, budget: int) -> None:
    assert settled(activity).budget_permille == pytest.approx(budget, abs=POLICY.budget_band_permille)


def test_a_smaller_budget_applies_at_once_and_a_larger_one_step_by_step() -> None:
    memory = settled(0.0)
    now_ns = memory.at_ns or 0
    memory = apply(memory, sample(now_ns + TICK, 100.0), cap_permille=LARGEST, policy=POLICY)
    assert memory.budget_permille == SMALLEST
    memory = apply(memory, sample(now_ns + 2 * TICK, 0.0), cap_permille=LARGEST, policy=POLICY)
    assert memory.budget_permille == SMALLEST + POLICY.budget_rise_permille_per_s // 10


def test_activity_that_is_not_known_gives_little_and_a_device_without_online_service_all() -> None:
    assert settled(None).budget_permille == POLICY.unknown_budget_permille
    assert settled(None, online_present=None).budget_permille == POLICY.unknown_budget_permille
    assert settled(None, online_present=False).budget_permille == LARGEST


def test_a_long_offline_kernel_that_hides_the_online_side_for_a_moment_changes_nothing() -> None:
    memory = settled(0.0)
    known_ns = memory.at_ns or 0
    for tick in range(1, 20):
        memory = apply(memory, sample(known_ns + tick * TICK, None), cap_permille=LARGEST, policy=POLICY)
    assert memory.budget_permille == LARGEST
    launched = sample(known_ns + 19 * TICK, None, online_last_launch_age_us=500)
    assert apply(memory, launched, cap_permille=LARGEST, policy=POLICY).budget_permille == 100
    late = sample(known_ns + 20 * TICK, None)
    assert apply(memory, late, cap_permille=LARGEST, policy=POLICY).budget_permille == 100


def test_slower_offline_kernels_tell_of_a_neighbour_unless_it_is_known_to_be_idle() -> None:
    assert online_share_pct(sample(activity=20.0, inflation_permille=2000), POLICY) == 50.0
    assert online_share_pct(sample(activity=20.0, inflation_permille=1100), POLICY) == 20.0
    assert online_share_pct(sample(activity=4.0, inflation_permille=9000), POLICY) == 4.0
    assert online_share_pct(sample(activity=None, inflation_permille=9000), POLICY) is None


def test_a_latency_above_the_aim_trims_the_budget_and_one_below_gives_it_back() -> None:
    memory = settled(10.0, seconds=5.0, slo_ratio=1.0)
    assert memory.trim == pytest.approx(1 - 5.0 * 0.3 * 0.2, abs=0.02)
    assert memory.budget_permille < settled(10.0).budget_permille
    now_ns = memory.at_ns or 0
    for tick in range(1, 101):
        readings = sample(now_ns + tick * TICK, 10.0, slo_ratio=0.3)
        memory = apply(memory, readings, cap_permille=LARGEST, policy=POLICY)
    assert memory.trim == 1.0


def test_the_window_follows_the_budget_between_its_bounds() -> None:
    assert window_us(0, POLICY) == POLICY.window_min_us
    assert window_us(LARGEST, POLICY) == POLICY.window_max_us
    assert window_us(460, POLICY) == (POLICY.window_min_us + POLICY.window_max_us) // 2


def test_beside_the_beacon_the_budget_is_the_largest_whatever_activity_is() -> None:
    for activity in (0.0, 30.0, 100.0, None):
        memory = settled(activity, online_beacons=True)
        assert memory.budget_permille == POLICY.beacon_budget_permille
        assert window_us(memory.budget_permille, POLICY, beacons=memory.beacons) == POLICY.window_min_us


def test_a_process_without_the_beacon_takes_the_budget_back_at_once() -> None:
    memory = settled(60.0, online_beacons=True)
    now_ns = memory.at_ns or 0
    for carried in (False, None):
        after = apply(memory, sample(now_ns + TICK, 60.0, online_beacons=carried), cap_permille=LARGEST, policy=POLICY)
        assert after.budget_permille == pytest.approx(330, abs=POLICY.budget_band_permille)
        assert not after.beacons


def test_a_latency_above_the_aim_trims_the_budget_beside_the_beacon_too() -> None:
    assert settled(10.0, seconds=5.0, slo_ratio=1.0, online_beacons=True).budget_permille < 800


# --- whatever is read

percents = st.floats(0, 100)
inflations = st.none() | st.integers(0, 10_000)
instants = st.none() | st.integers(0, SECOND)
memories = st.builds(
    BudgetMemory,
    budget_permille=st.integers(0, 1000),
    trim=st.floats(0, 1),
    held_down=st.booleans(),
    at_ns=instants,
    known_ns=instants,
    beacons=st.booleans(),
)
caps = st.integers(100, 1000)
samples = st.builds(
    sample,
    now_ns=st.integers(0, 3 * SECOND),
    activity=st.none() | percents,
    slo_ratio=st.none() | st.floats(0, 3),
    inflation_permille=inflations,
    online_beacons=st.none() | st.booleans(),
)


@given(memories, samples, caps)
def test_the_budget_stays_within_its_bounds(memory: BudgetMemory, readings: Readings, cap: int) -> None:
    after = apply(memory, readings, cap_permille=cap, policy=POLICY)
    assert 0 <= after.budget_permille <= min(cap, largest_permille(readings, POLICY))
    assert after.beacons == (readings.online_beacons is True)
    assert 0.0 <= after.trim <= 1.0
    risen = after.budget_permille - memory.budget_permille
    assert risen <= POLICY.budget_rise_permille_per_s
    window = window_us(after.budget_permille, POLICY, beacons=after.beacons)
    assert POLICY.window_min_us <= window <= POLICY.window_max_us


@given(memories, samples, caps)
def test_carrying_the_beacon_never_gives_a_smaller_budget(memory: BudgetMemory, readings: Readings, cap: int) -> None:
    memory, readings = replace(memory, trim=1.0), replace(readings, slo_ratio=None)
    without, carried = (
        apply(memory, replace(readings, online_beacons=each), cap_permille=cap, policy=POLICY).budget_permille
        for each in (False, True)
    )
    assert carried >= without


@given(memories, samples, st.tuples(percents, percents), caps)
def test_more_online_activity_never_gives_a_larger_budget(
    memory: BudgetMemory, readings: Readings, activities: tuple[float, float], cap: int
) -> None:
    less, more = (
        apply(memory, replace(readings, online_activity_pct=activity), cap_permille=cap, policy=POLICY)
        for activity in sorted(activities)
    )
    assert less.budget_permille >= more.budget_permille


@example(BudgetMemory(trim=0.25, held_down=False, at_ns=0), 87.0, (0.25, 1.0), (None, None), 100)
@given(memories, percents, st.tuples(st.floats(0, 3), st.floats(0, 3)), st.tuples(inflations, inflations), caps)
def test_a_worse_latency_and_slower_kernels_never_give_a_larger_budget(
    memory: BudgetMemory,
    activity: float,
    latencies: tuple[float, float],
    slowness: tuple[int | None, int | None],
    cap: int,
) -> None:
    def budget(ratio: float, inflation: int | None) -> int:
        readings = sample(2 * SECOND, activity, slo_ratio=ratio, inflation_permille=inflation)
        return apply(memory, readings, cap_permille=cap, policy=POLICY).budget_permille

    low, high = sorted(latencies)
    fast, slow = sorted(slowness, key=lambda value: value or 0)
    assert budget(low, fast) >= budget(high, fast)
    assert budget(low, fast) >= budget(low, slow)


@given(st.floats(6, 85), st.integers(0, 2**32))
@settings(max_examples=30)
def test_noise_of_a_per_cent_does_not_move_the_budget(activity: float, seed: int) -> None:
    noise = random.Random(seed)
    memory = settled(activity)
    moved = 0
    for tick in range(1, 301):
        readings = sample((memory.at_ns or 0) + TICK, activity + noise.uniform(-1, 1))
        after = apply(memory, readings, cap_permille=LARGEST, policy=POLICY)
        moved += tick > 50 and after.budget_permille != memory.budget_permille
        memory = after
    assert moved <= 1


# --- the plant


class Point(msgspec.Struct, frozen=True):
    """The plant at one instant."""

    at_s: float
    online: float
    """What the online side needs of the device, 0 to 1."""
    offline: float
    """What offline work takes."""
    budget: int
    state: DeviceCondition
    ratio: float
    """Latency over target."""


class Plant:
    """A fluid device with an open-loop online load and an offline job that takes what it may, watched at 10 Hz.

    Utilization is the union of both, as NVML gives it: the mean over a sample period, in whole per cents, renewed once
    in a period, and up to one period old. Offline busy time comes from counters, over the same period. The budget is
    kept by the job with an error. Latency is reported once a second over the last second; it grows with the offline
    share, by `coupling` for the whole device.
    """

    STEP_S = 0.01

    def __init__(
        self,
        load: Callable[[float], float],
        *,
        period_s: float = 1 / 6,
        attribute: Callable[[float, float], float | None] | None = None,
        base_ratio: float | None = None,
        coupling: float = 0.0,
        beacons: bool = False,
        seed: int = 1,
        policy: DevicePolicy = POLICY,
    ) -> None:
        """`beacons`: offline work keeps clear of online work by itself."""
        self._load = load
        self._beacons = beacons
        self._period_s = period_s
        self._attribute = attribute or partial(_attributed, apart=beacons)
        self._base_ratio, self._coupling = base_ratio, coupling
        self._noise = random.Random(seed)
        self._policy = policy
        self._memory = DeviceMemory()
        self._period: deque[tuple[float, float]] = deque()
        self._latency: deque[float] = deque(maxlen=round(1.0 / self.STEP_S))
        self._meter: tuple[float, float] = (0.0, 0.0)
        self._reported: float | None = None
        self.points: list[Point] = []

    def run(self, seconds: float) -> list[Point]:
        self._give(MonitorStarted(), 0)
        steps_per_look, steps_per_period = round(0.1 / self.STEP_S), round(self._period_s / self.STEP_S)
        error = 1.0
        for step in range(round(seconds / self.STEP_S)):
            at_s = step * self.STEP_S
            gate = self._memory.gate
            online = self._load(at_s)
            if step % steps_per_look == 0:
                error = self._noise.uniform(0.97, 1.03)
            offline = min(gate.budget_permille / 1000 * error, 1.0) if gate.state is GateState.OPEN else 0.0
            if self._beacons:
                offline = min(offline, 1 - online)
            ratio = (self._base_ratio or 0.0) + self._coupling * offline
            used = online + offline if self._beacons else 1 - (1 - online) * (1 - offline)
            self._period.append((used, offline))
            self._latency.append(ratio)
            if len(self._period) == steps_per_period:
                used, taken = (sum(column) / steps_per_period for column in zip(*self._period, strict=True))
                self._meter = (round(100 * used), 100 * taken)
                self._period.clear()
            if self._base_ratio is not None and step % round(1.0 / self.STEP_S) == 0 and step:
                self._reported = sum(self._latency) / len(self._latency)
            if step % steps_per_look == steps_per_look - 1:
                self._look(at_s + self.STEP_S)
            self.points.append(Point(at_s, online, offline, gate.budget_permille, self._memory.condition, ratio))
        return self.points

    def _look(self, at_s: float) -> None:
        device_pct, offline_pct = self._meter
        now_ns = round(at_s * SECOND)
        readings = Readings(
            now_ns=now_ns,
            utilization_pct=device_pct,
            offline_busy_permille=round(10 * min(offline_pct, 100)),
            online_present=True,
            online_activity_pct=self._attribute(device_pct, offline_pct),
            online_beacons=self._beacons or None,
            memory_used_bytes=1,
            memory_total_bytes=2**34,
            slo_ratio=self._reported,
        )
        self._give(Read(readings=readings), now_ns)

    def _give(self, stimulus: Any, now_ns: int) -> None:
        outcome = advance(self._memory, stimulus, now_ns=now_ns, policy=self._policy)
        self._memory = outcome.memory
        validate(self._memory, self._policy)


def _attributed(device_pct: float, offline_pct: float, *, apart: bool) -> float | None:
    return online_activity_pct(device_pct=device_pct, offline_pct=offline_pct, apart=apart)


def burst(begin_s: float, end_s: float, height: float, rest: float = 0.0) -> Callable[[float], float]:
    return lambda at_s: height if begin_s <= at_s < end_s else rest


def between(points: list[Point], begin_s: float, end_s: float) -> list[Point]:
    return [point for point in points if begin_s <= point.at_s < end_s]


def turns(points: list[Point]) -> int:
    """How often the budget changes its direction."""
    budgets = [budget for budget, _ in itertools.groupby(point.budget for point in points)]
    signs = [later > earlier for earlier, later in itertools.pairwise(budgets)]
    return sum(one != other for one, other in itertools.pairwise(signs))


@pytest.mark.parametrize("period_s", [1 / 6, 1.0])
@pytest.mark.parametrize("load", [0.0, 0.1, 0.3, 0.5, 0.65])
def test_under_a_constant_load_the_budget_converges_without_swinging(load: float, period_s: float) -> None:
    points = between(Plant(lambda _: load, period_s=period_s).run(30.0), 6.0, 30.0)
    assert {point.state for point in points} == {DeviceCondition.HEALTHY}
    wanted = settled(100 * load).budget_permille
    # The meter's quantum is magnified by the share of time in which the online side can be seen.
    slack = 2 * POLICY.budget_band_permille + 11 * round(2 / (1 - wanted / 1000))
    assert all(abs(point.budget - wanted) <= slack for point in points)
    assert turns(points) <= 2
    reached = sum(point.offline for point in points) / sum(1 - point.online for point in points)
    assert reached >= 0.75


@pytest.mark.parametrize("height", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("phase_s", [0.0, 0.05, 0.13])
def test_after_a_burst_that_did_not_last_the_idle_capacity_is_back_within_a_second(
    height: float, phase_s: float
) -> None:
    begin_s, end_s = 8.0 + phase_s, 9.5 + phase_s
    points = Plant(burst(begin_s, end_s, height)).run(14.0)
    assert min(point.budget for point in between(points, begin_s, end_s)) <= 950 - 900 * height
    former = points[799].offline
    back = next(point.at_s for point in between(points, end_s, 14.0) if point.offline >= 0.9 * former)
    assert back - end_s <= 1.0


def test_a_lasting_burst_is_met_at_the_meters_pace_then_freezes_and_is_paid_for_with_calm() -> None:
    points = Plant(burst(8.0, 12.0, 1.0)).run(25.0)
    low = next(point.at_s for point in between(points, 8.0, 12.0) if point.budget <= 100)
    assert low - 8.0 <= 2 * (1 / 6) + 0.1 + Plant.STEP_S
    frozen = next(point.at_s for point in points if point.state is DeviceCondition.OVERLIMIT)
    assert frozen - low <= POLICY.overlimit_after_s + 0.2
    assert all(point.offline == 0.0 for point in between(points, frozen + Plant.STEP_S, 12.0 + POLICY.readmit_s))
    opened = next(point for point in between(points, frozen, 25.0) if point.state is DeviceCondition.HEALTHY)
    assert POLICY.readmit_s <= opened.at_s - 12.0 <= POLICY.readmit_s + 1.0
    assert between(points, opened.at_s + 1.0, 25.0)[0].budget == LARGEST


def test_a_saturating_job_beside_short_requests_gets_most_of_the_idle_time() -> None:
    """Open-loop requests of 20 ms each, at random, with a rate that rises and falls: 30% of the device on average."""
    arrivals = random.Random(7)
    busy: list[bool] = []
    while len(busy) < 6000:
        rate = 0.3 + 0.15 * ((len(busy) // 300) % 2 * 2 - 1)
        busy += [True, True] if arrivals.random() < rate / 2 else [False]
    points = between(Plant(lambda at_s: float(busy[round(at_s / Plant.STEP_S)])).run(60.0), 3.0, 60.0)
    assert all(point.state in (DeviceCondition.HEALTHY, DeviceCondition.UNHEALTHY) for point in points)
    reached = sum(point.offline for point in points) / sum(1 - point.online for point in points)
    assert reached >= 0.6


@pytest.mark.parametrize("height", [0.3, 0.5, 0.65])
def test_beside_the_beacon_a_burst_costs_its_own_time_and_no_more(height: float) -> None:
    points = between(Plant(burst(8.0, 12.0, height), period_s=0.5, beacons=True).run(20.0), 2.0, 20.0)
    assert {point.state for point in points} == {DeviceCondition.HEALTHY}
    assert sum(point.offline for point in points) / sum(1 - point.online for point in points) >= 0.95


def test_beside_the_beacon_a_burst_that_needs_the_device_freezes_it_all_the_same() -> None:
    points = Plant(burst(8.0, 12.0, 1.0), beacons=True).run(14.0)
    assert DeviceCondition.OVERLIMIT in {point.state for point in between(points, 10.0, 12.0)}


def test_the_trim_holds_the_latency_at_its_aim_without_ever_missing_the_target() -> None:
    points = between(Plant(lambda _: 0.1, base_ratio=0.7, coupling=0.2).run(60.0), 2.0, 60.0)
    assert {point.state for point in points} == {DeviceCondition.HEALTHY}
    tail = between(points, 40.0, 60.0)
    assert all(abs(point.ratio - POLICY.slo_aim_ratio) <= 0.03 for point in tail)
    assert turns(tail) <= 4


@pytest.mark.parametrize("coupling", [0.6, 1.0])
def test_a_job_that_hurts_the_latency_is_stopped_once_and_then_kept_at_the_aim(coupling: float) -> None:
    base = POLICY.slo_aim_ratio - coupling / 2
    points = Plant(lambda _: 0.1, base_ratio=base, coupling=coupling).run(90.0)
    stops = [state for state, _ in itertools.groupby(point.state for point in points)]
    assert stops.count(DeviceCondition.OVERLIMIT) <= 1
    later = between(points, 30.0, 90.0)
    assert {point.state for point in later} == {DeviceCondition.HEALTHY}
    assert max(point.ratio for point in later) <= POLICY.slo_aim_ratio + 0.05
    assert all(abs(point.ratio - POLICY.slo_aim_ratio) <= 0.06 for point in between(points, 60.0, 90.0))


def test_the_loop_through_the_reports_is_still_stable_at_four_times_the_assumed_coupling() -> None:
    """The law alone: the state machine would step in long before."""
    memory, past, history = freeze(BudgetMemory(), now_ns=0), deque([0.8] * 10, maxlen=10), []
    reported: float | None = None
    for tick in range(1, 1201):
        offline = memory.budget_permille / LARGEST
        past.append(0.4 + 4.0 * offline)
        if tick % 10 == 0:
            reported = sum(past) / len(past)
        readings = sample(tick * TICK, 0.0, slo_ratio=reported)
        memory = apply(memory, readings, cap_permille=LARGEST, policy=POLICY)
        history.append(past[-1])
    swing_early = max(history[200:400]) - min(history[200:400])
    swing_late = max(history[1000:]) - min(history[1000:])
    assert swing_late <= max(swing_early, 0.2)
    assert abs(sum(history[1000:]) / 200 - POLICY.slo_aim_ratio) <= 0.1


def test_the_plain_difference_would_blind_the_law_to_a_burst_beside_a_saturating_job() -> None:
    """Why activity is corrected for the time in which it could not be seen."""
    load = burst(8.0, 12.0, 0.6)
    plain = Plant(load, attribute=lambda device_pct, offline_pct: max(device_pct - offline_pct, 0.0)).run(12.0)
    corrected = Plant(load).run(12.0)
    assert min(point.budget for point in between(plain, 9.0, 12.0)) >= 800
    assert max(point.budget for point in between(corrected, 9.0, 12.0)) <= 450
