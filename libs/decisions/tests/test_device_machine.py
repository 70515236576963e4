"""The device machine, one sentence at a time, and driven through anything."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muxflow.contracts import DeviceCondition
from muxflow_decisions.device import (
    Alert,
    DeviceMemory,
    DevicePolicy,
    Disable,
    Enable,
    Fault,
    Gate,
    GateState,
    InvalidMemory,
    Lost,
    MonitorStarted,
    Outcome,
    Read,
    Readings,
    Restored,
    SetGate,
    Stimulus,
    Tell,
    advance,
    gate_of,
    story,
    validate,
)
from muxflow_decisions.device.causes import CAUSE_BYTES
from muxflow_decisions.device.memory import STORY_LENGTH
from muxflow_decisions.device.picture import draw
from muxflow_decisions.device.table import TABLE

SECOND = 1_000_000_000
TICK = SECOND // 10
GIB = 2**30
POLICY = DevicePolicy()


class Device:
    """A device that is watched ten times a second."""

    def __init__(self, memory: DeviceMemory | None = None, policy: DevicePolicy = POLICY) -> None:
        self.memory = DeviceMemory() if memory is None else memory
        self.policy = policy
        self.now_ns = 1000 * SECOND
        self.told: list[Tell] = []
        self.gates: list[Gate] = []
        self.alerts: list[Alert] = []
        self.give(MonitorStarted())

    def give(self, stimulus: Stimulus) -> Outcome:
        outcome = advance(self.memory, stimulus, now_ns=self.now_ns, policy=self.policy)
        self.memory = outcome.memory
        validate(self.memory, self.policy)
        for instruction in outcome.instructions:
            match instruction:
                case Tell():
                    self.told.append(instruction)
                case SetGate():
                    self.gates.append(instruction.gate)
                case Alert():
                    self.alerts.append(instruction)
        return outcome

    def read(self, seconds: float = 0.1, **changes: Any) -> DeviceCondition:
        """Sample for so long; gives the state after it."""
        for _ in range(round(seconds * 10)):
            self.now_ns += TICK
            self.give(Read(readings=readings(now_ns=self.now_ns, **changes)))
        return self.memory.condition

    @property
    def path(self) -> list[str]:
        return [tell.state.value for tell in self.told]


def readings(**changes: Any) -> Readings:
    values: dict[str, Any] = {
        "now_ns": 0,
        "utilization_pct": 95.0,
        "memory_used_bytes": 10 * GIB,
        "memory_total_bytes": 16 * GIB,
        "offline_memory_bytes": 4 * GIB,
        "offline_busy_permille": 900,
        "sm_clock_mhz": 1500,
        "sm_clock_max_mhz": 1590,
        "throttle_reasons": 0,
        "temperature_c": 60.0,
        "online_present": True,
        "online_activity_pct": 3.0,
    }
    return Readings(**(values | changes))


def healthy(policy: DevicePolicy = POLICY) -> Device:
    device = Device(policy=policy)
    assert device.read(3.0) is DeviceCondition.HEALTHY
    device.told.clear()
    return device


def overlimit() -> Device:
    device = healthy()
    assert device.read(3.0, online_activity_pct=97.0) is DeviceCondition.OVERLIMIT
    return device


FULL = {"memory_used_bytes": 16 * GIB - 1000}


# --- the beginning


def test_a_device_stays_frozen_until_its_readings_have_been_calm() -> None:
    device = Device()
    assert device.read(1.0) is DeviceCondition.INIT
    assert {gate.state for gate in device.gates} == {GateState.FROZEN}
    assert device.read(0.1) is DeviceCondition.HEALTHY
    assert device.memory.gate.state is GateState.OPEN
    assert [(tell.previous, tell.state) for tell in device.told] == [
        (None, DeviceCondition.INIT),
        (DeviceCondition.INIT, DeviceCondition.HEALTHY),
    ]


def test_a_healthy_device_opens_step_by_step_to_the_largest_budget() -> None:
    device = healthy()
    budgets = [gate.budget_permille for gate in device.gates if gate.state is GateState.OPEN]
    assert budgets == sorted(budgets)
    assert budgets[0] <= 180
    assert budgets[-1] == POLICY.budget_max_permille


# --- limits


def test_one_noisy_sample_changes_nothing() -> None:
    device = healthy()
    for noise in ({"online_activity_pct": 100.0}, {"slo_ratio": 5.0}, {"temperature_c": 99.0}):
        device.read(0.1, **noise)
        device.read(1.0)
    device.read(0.1, online_activity_pct=None)
    device.read(1.0)
    assert device.path == []


def test_online_activity_makes_it_unhealthy_and_slows() -> None:
    device = healthy()
    assert device.read(0.4, online_activity_pct=75.0) is DeviceCondition.UNHEALTHY
    assert device.told[-1].cause == "online activity 75 % ≥ 70 % for 0.3 s"
    assert device.memory.gate.budget_permille <= POLICY.unhealthy_budget_permille


def test_hysteresis_keeps_it_unhealthy_until_the_reading_is_clear_and_calm() -> None:
    device = healthy()
    device.read(0.4, online_activity_pct=75.0)
    assert device.read(60.0, online_activity_pct=61.0) is DeviceCondition.UNHEALTHY
    assert device.read(1.9, online_activity_pct=59.0) is DeviceCondition.UNHEALTHY
    assert device.memory.gate.budget_permille > POLICY.unhealthy_budget_permille  # by the law, and nobody is admitted
    assert device.read(0.3, online_activity_pct=59.0) is DeviceCondition.HEALTHY
    assert device.told[-1].cause == "calm for 2.0 s"


def test_a_lasting_burst_goes_over_the_limit_and_freezes_all_but_what_saves_itself() -> None:
    device = healthy()
    device.read(3.0, online_activity_pct=97.0)
    assert device.path == ["unhealthy", "overlimit"]
    assert device.told[-1].cause == "online activity 97 % ≥ 90 % for 2.0 s"
    assert not device.told[-1].hard
    assert device.memory.gate == Gate(state=GateState.TRICKLE, budget_permille=50, window_us=POLICY.window_min_us)


@pytest.mark.parametrize(
    ("changes", "state", "cause"),
    [
        ({"slo_ratio": 0.95}, "unhealthy", "online latency 0.95 × target ≥ 0.90 for 0.3 s"),
        ({"slo_ratio": 1.2}, "overlimit", "online latency 1.20 × target ≥ 1.00 for 2.0 s"),
        ({"temperature_c": 88.0}, "unhealthy", "88 °C ≥ 87 °C for 1.5 s"),
        ({"temperature_c": 95.0}, "overlimit", "95 °C ≥ 93 °C for 2.0 s"),
        (
            {"sm_clock_mhz": 954, "online_activity_pct": 20.0},
            "unhealthy",
            "SM clock 60 % of its maximum ≤ 65 % for 1.5 s",
        ),
        (
            {"sm_clock_mhz": 636, "online_activity_pct": 20.0},
            "overlimit",
            "SM clock 40 % of its maximum ≤ 45 % for 2.0 s",
        ),
    ],
)
def test_each_reading_has_its_limits(changes: dict[str, Any], state: str, cause: str) -> None:
    device = healthy()
    assert device.read(3.0, **changes).value == state
    assert device.told[-1].cause == cause


@pytest.mark.parametrize("changes", [{"online_activity_pct": 2.0}, {"throttle_reasons": 1}])
def test_a_low_clock_means_nothing_while_nothing_online_runs(changes: dict[str, Any]) -> None:
    device = healthy()
    idle = {"sm_clock_mhz": 300, "online_activity_pct": 20.0} | changes
    assert device.read(10.0, **idle) is DeviceCondition.HEALTHY


def test_exhausted_memory_freezes_everything_with_the_first_sample() -> None:
    device = healthy()
    assert device.read(0.1, **FULL) is DeviceCondition.OVERLIMIT
    assert device.told[-1].hard
    assert device.told[-1].cause == "0 MiB of memory free, 256 are reserved"
    assert device.memory.gate.state is GateState.FROZEN


def test_memory_that_the_online_side_alone_has_taken_only_keeps_others_out() -> None:
    device = healthy()
    assert device.read(1.0, offline_memory_bytes=0, **FULL) is DeviceCondition.UNHEALTHY
    assert "none of it is offline" in device.told[-1].cause
    assert device.read(0.1, offline_memory_bytes=1, **FULL) is DeviceCondition.OVERLIMIT


def test_a_soft_overlimit_becomes_hard_and_keeps_its_beginning() -> None:
    device = overlimit()
    before = device.memory
    device.read(0.1, online_activity_pct=97.0, **FULL)
    assert (device.memory.hard, device.memory.since_ns) == (True, before.since_ns)
    assert device.memory.epoch == before.epoch + 1
    assert device.told[-1].previous is device.told[-1].state is DeviceCondition.OVERLIMIT


# --- what is not known


@pytest.mark.parametrize("present", [True, None])
def test_activity_that_cannot_be_known_is_unhealthy_and_says_so(present: bool | None) -> None:
    device = healthy()
    assert device.read(1.9, online_activity_pct=None, online_present=present) is DeviceCondition.HEALTHY
    assert device.read(0.3, online_activity_pct=None, online_present=present) is DeviceCondition.UNHEALTHY
    assert "online activity is not known" in device.told[-1].cause
    assert [alert.severity for alert in device.alerts] == ["warning"]
    assert device.memory.gate.budget_permille <= POLICY.unknown_budget_permille


def test_what_comes_and_goes_is_not_told_each_time() -> None:
    device = healthy()
    for _ in range(5):
        device.read(3.0, online_activity_pct=None)
        device.read(3.0)
    assert len(device.alerts) == 1
    device.read(POLICY.recent_s)
    device.read(3.0, online_activity_pct=None)
    assert len(device.alerts) == 2


def test_a_reading_that_is_taken_at_every_fifth_look_may_be_wrong_once() -> None:
    device = healthy()
    device.read(0.5, sm_clock_mhz=300, online_activity_pct=20.0)
    device.read(1.0, online_activity_pct=20.0)
    device.read(0.5, temperature_c=99.0)
    device.read(1.0)
    assert device.path == []


def test_without_an_online_service_no_activity_has_to_be_known() -> None:
    device = Device()
    assert device.read(10.0, online_activity_pct=None, online_present=False) is DeviceCondition.HEALTHY


def test_a_limit_does_not_clear_because_its_reading_is_gone_and_is_forgotten_in_the_end() -> None:
    device = healthy()
    device.read(3.0, slo_ratio=1.5)
    assert device.memory.condition is DeviceCondition.OVERLIMIT
    assert device.read(29.0, slo_ratio=None) is DeviceCondition.OVERLIMIT
    assert device.read(10.0, slo_ratio=None) is DeviceCondition.HEALTHY


def test_a_device_that_tells_nothing_is_never_opened_wide() -> None:
    device = Device()
    nothing = {field: None for field in Readings.__struct_fields__ if field != "now_ns"}
    assert device.read(60.0, **nothing) is DeviceCondition.UNHEALTHY
    assert device.memory.gate.budget_permille <= POLICY.unknown_budget_permille


def test_a_gap_between_samples_proves_no_calm() -> None:
    device = overlimit()
    device.read(0.1, online_activity_pct=0.0)
    device.now_ns += 60 * SECOND
    assert device.read(4.9, online_activity_pct=0.0) is DeviceCondition.OVERLIMIT
    assert device.read(0.2, online_activity_pct=0.0) is DeviceCondition.HEALTHY


# --- a saturating offline job beside an idle online service


@given(st.integers())
@settings(max_examples=20, deadline=None)
def test_a_saturating_offline_job_beside_an_idle_online_service_stays_healthy(number: int) -> None:
    seed = random.Random(number)
    device = healthy()
    for tick in range(1_000):
        device.now_ns += TICK + seed.randrange(-TICK // 5, TICK // 5)
        spike = tick % 5 == 0  # noise that NVML's rounding makes; not in two samples in a row
        device.give(
            Read(
                readings=readings(
                    now_ns=device.now_ns,
                    utilization_pct=seed.uniform(85, 100),
                    sm_activity_pct=seed.uniform(50, 100),
                    memory_bandwidth_pct=seed.uniform(0, 100),
                    offline_busy_permille=seed.randrange(850, 1001),
                    memory_used_bytes=seed.randrange(8 * GIB, 15 * GIB),
                    sm_clock_mhz=seed.randrange(500, 1591),
                    throttle_reasons=seed.choice([0, 4, 4 | 32]),
                    temperature_c=seed.uniform(40, 86),
                    online_activity_pct=seed.uniform(0, 100) if spike else seed.uniform(0, 5),
                    slo_ratio=seed.choice([None, seed.uniform(0, 0.75)]),
                )
            )
        )
    assert device.path == []


def test_an_hour_of_a_saturating_job_leaves_the_budget_at_its_largest() -> None:
    device = healthy()
    device.gates.clear()
    device.read(3600.0, online_activity_pct=4.0)
    assert (device.path, device.gates) == ([], [])
    assert device.memory.gate.budget_permille == POLICY.budget_max_permille


# --- calm that is owed


def bursts(device: Device, count: int) -> list[float]:
    """Let bursts follow each other at once; gives the seconds that each re-admission took."""
    taken = []
    for _ in range(count):
        assert device.read(2.5, online_activity_pct=100.0) is DeviceCondition.OVERLIMIT
        calm_ns = device.now_ns
        while device.read(0.1, online_activity_pct=0.0) is DeviceCondition.OVERLIMIT:
            pass
        taken.append((device.now_ns - calm_ns) / SECOND)
    return taken


def test_each_recent_overlimit_doubles_the_calm_up_to_a_bound() -> None:
    policy = DevicePolicy(readmit_s=1.0, readmit_longest_s=10.0)
    device = healthy(policy)
    assert bursts(device, 6) == pytest.approx([1, 2, 4, 8, 10, 10], abs=0.2)
    assert "Overlimits within" in device.alerts[-1].message


def test_overlimits_that_are_long_past_no_longer_count() -> None:
    policy = DevicePolicy(readmit_s=1.0, recent_s=60.0)
    device = healthy(policy)
    bursts(device, 3)
    device.read(61.0)
    assert bursts(device, 1) == pytest.approx([1], abs=0.2)


def test_noise_within_the_calm_does_not_break_it_and_a_limit_does() -> None:
    device = overlimit()
    device.read(3.0, online_activity_pct=0.0)
    device.read(0.1, online_activity_pct=95.0)
    assert device.read(2.1, online_activity_pct=0.0) is DeviceCondition.HEALTHY
    device = overlimit()
    device.read(3.0, online_activity_pct=0.0)
    device.read(0.5, online_activity_pct=75.0)
    assert device.read(4.9, online_activity_pct=0.0) is DeviceCondition.OVERLIMIT


@pytest.mark.parametrize("detour", [(MonitorStarted(),), (Disable(), Enable())])
def test_no_detour_makes_an_overlimit_cheaper(detour: tuple[Stimulus, ...]) -> None:
    device = overlimit()
    owed_ns = device.memory.calm_owed_ns
    for stimulus in detour:
        device.give(stimulus)
    assert device.memory.condition is DeviceCondition.INIT
    assert device.memory.calm_owed_ns == owed_ns
    assert device.read(4.9, online_activity_pct=0.0) is DeviceCondition.INIT
    assert device.read(0.3, online_activity_pct=0.0) is DeviceCondition.HEALTHY


def test_a_new_monitor_does_not_open_a_little_what_still_owes_calm() -> None:
    device = overlimit()
    device.give(MonitorStarted())
    assert device.read(60.0, online_activity_pct=75.0) is DeviceCondition.INIT


# --- faults, operators, monitors


def test_a_fatal_fault_freezes_at_once_and_needs_a_person() -> None:
    device = healthy()
    device.give(Fault(kind="xid", xid=31, message="MMU fault", fatal=True))
    assert (device.memory.condition, device.memory.hard) == (DeviceCondition.OVERLIMIT, True)
    assert device.told[-1].cause == "fault: xid 31, MMU fault"
    assert device.alerts[-1] == Alert(severity="critical", message="fault: xid 31, MMU fault")
    assert device.read(6.0) is DeviceCondition.HEALTHY


def test_a_fault_that_is_not_fatal_changes_nothing() -> None:
    device = healthy()
    before = device.memory
    outcome = device.give(Fault(kind="xid", xid=94, fatal=False))
    assert outcome.memory is before
    assert outcome.instructions == ()


def test_another_fatal_fault_makes_the_calm_begin_anew() -> None:
    device = healthy()
    device.give(Fault(kind="mps", fatal=True))
    device.read(4.0)
    device.give(Fault(kind="mps", fatal=True))
    assert device.read(4.9) is DeviceCondition.OVERLIMIT
    assert device.read(0.3) is DeviceCondition.HEALTHY


def test_a_lost_gpu_comes_back_only_when_it_is_restored_and_calm() -> None:
    device = healthy()
    device.give(Lost(message="XID 79"))
    device.give(Lost(message="XID 79"))
    assert device.told[-1].cause == "the GPU does not answer: XID 79"
    assert (device.path, len(device.alerts)) == (["overlimit"], 1)
    assert device.read(60.0) is DeviceCondition.OVERLIMIT
    device.give(Restored())
    assert device.read(4.9) is DeviceCondition.OVERLIMIT
    assert device.read(0.3) is DeviceCondition.HEALTHY
    assert [alert.severity for alert in device.alerts] == ["critical", "info"]


def test_a_disabled_device_stays_so_until_it_is_enabled_even_for_a_new_monitor() -> None:
    device = healthy()
    device.give(Disable(reason="new fans"))
    device.give(MonitorStarted())
    assert device.read(60.0) is DeviceCondition.DISABLED
    assert device.told[-1].cause == "disabled by an operator: new fans"
    device.give(Enable())
    assert device.read(2.0) is DeviceCondition.HEALTHY


def test_what_an_operator_disables_lets_a_job_save_its_state() -> None:
    device = healthy()
    device.give(Disable(reason="new fans"))
    trickle = Gate(state=GateState.TRICKLE, budget_permille=50, window_us=500)
    assert (device.memory.gate, device.memory.hard) == (trickle, False)
    device.give(MonitorStarted())
    device.read(60.0)
    assert device.memory.gate == trickle


@pytest.mark.parametrize("what", [Lost(message="XID 79"), Fault(kind="xid", xid=48, fatal=True), None])
def test_nothing_trickles_on_a_disabled_device_that_is_lost_or_faulty_or_full(what: Stimulus | None) -> None:
    before, after = healthy(), healthy()
    for device, order in ((before, (what, Disable(reason="new fans"))), (after, (Disable(reason="new fans"), what))):
        for stimulus in order:
            device.read(0.1, **FULL) if stimulus is None else device.give(stimulus)
        assert (device.memory.condition, device.memory.hard) == (DeviceCondition.DISABLED, True)
        assert device.memory.gate.state is GateState.FROZEN
        assert device.told[-1].cause.startswith("disabled by an operator: new fans")
    told = after.told[-1]
    assert (told.previous, told.epoch) == (DeviceCondition.DISABLED, before.told[-1].epoch)
    assert told.cause != "disabled by an operator: new fans"  # and what came on top
    if what is not None:
        after.give(MonitorStarted())
        assert after.memory.gate.state is GateState.FROZEN


def test_enabling_a_device_that_is_lost_does_not_open_it() -> None:
    device = healthy()
    device.give(Disable())
    device.give(Lost())
    device.give(Enable())
    assert (device.memory.condition, device.memory.hard) == (DeviceCondition.OVERLIMIT, True)


def test_a_new_monitor_goes_on_with_the_epoch_and_begins_frozen() -> None:
    device = Device(DeviceMemory(epoch=41))
    assert device.told[0].epoch == 42
    assert device.told[0].since_ns == device.now_ns
    device.read(3.0)
    device.give(MonitorStarted())
    assert device.memory.gate.state is GateState.FROZEN
    assert device.told[-1].previous is DeviceCondition.HEALTHY


# --- anything


times = st.floats(0.01, 40.0)
percents = st.none() | st.floats(0, 100)
samples = st.builds(
    readings,
    online_activity_pct=percents,
    online_present=st.none() | st.booleans(),
    slo_ratio=st.none() | st.floats(0, 3),
    temperature_c=st.none() | st.floats(20, 110),
    memory_used_bytes=st.none() | st.integers(8 * GIB, 16 * GIB),
    offline_memory_bytes=st.none() | st.sampled_from([0, GIB]),
    sm_clock_mhz=st.none() | st.integers(0, 1590),
    throttle_reasons=st.none() | st.integers(0, 255),
    inflation_permille=st.none() | st.integers(0, 9000),
)
stimuli = st.one_of(
    st.tuples(samples, st.integers(1, 60)),
    st.builds(Disable, reason=st.text(max_size=200)),
    st.builds(Fault, kind=st.just("xid"), message=st.text(max_size=300), fatal=st.booleans()),
    st.sampled_from([Enable(), Lost(), Restored(), MonitorStarted()]),
)


def play(device: Device, scenario: list[tuple[float, Any]], *, encoded: bool = False) -> list[Outcome]:
    """Drive a device through stimuli with times between them; a sample is repeated at 10 Hz."""
    outcomes = []
    for pause_s, item in scenario:
        device.now_ns += int(pause_s * SECOND)
        repeated = [item] if not isinstance(item, tuple) else [item[0]] * item[1]
        for each in repeated:
            if isinstance(each, Readings):
                device.now_ns += TICK
                each = Read(readings=msgspec.structs.replace(each, now_ns=device.now_ns))  # noqa: PLW2901 - as driven
            if encoded:
                data = msgspec.json.encode(device.memory)
                device.memory = msgspec.json.decode(data, type=DeviceMemory)
            outcomes.append(device.give(each))
    return outcomes


@given(st.lists(st.tuples(times, stimuli), max_size=12))
@settings(max_examples=150, deadline=None)
def test_whatever_happens_the_rules_hold_and_each_change_is_told_once(scenario: list[tuple[float, Any]]) -> None:
    device = Device()
    outcomes = play(device, scenario)
    epochs = [tell.epoch for tell in device.told]
    assert epochs == list(range(1, len(epochs) + 1))
    ways = {(row.state, row.next) for row in TABLE}
    assert all((tell.previous, tell.state) in ways for tell in device.told[1:])
    assert all(len(tell.cause.encode()) <= CAUSE_BYTES for tell in device.told)
    for outcome in outcomes:
        assert outcome.memory.gate == gate_of(outcome.memory, POLICY)
        if any(isinstance(instruction, Tell) for instruction in outcome.instructions):
            assert isinstance(outcome.instructions[0], SetGate)


@given(st.lists(st.tuples(times, stimuli), max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_memory_that_was_kept_on_disk_goes_on_in_the_same_way(scenario: list[tuple[float, Any]]) -> None:
    assert play(Device(), scenario) == play(Device(), scenario, encoded=True)


@given(st.lists(st.tuples(times, stimuli), max_size=8))
@settings(max_examples=15, deadline=None)
def test_from_anywhere_calm_leads_back_to_healthy(scenario: list[tuple[float, Any]]) -> None:
    device = Device()
    play(device, [*scenario, (1.0, Restored()), (1.0, Enable())])
    longest_s = POLICY.forget_after_s + POLICY.readmit_longest_s + POLICY.settle_s
    assert device.read(longest_s + 1, slo_ratio=None, online_activity_pct=0.0) is DeviceCondition.HEALTHY


def test_the_story_is_bounded_and_tells_states_and_causes() -> None:
    device = overlimit()
    assert story(device.memory, now_ns=device.now_ns)[-1].endswith(
        "overlimit  #4 read: online activity 97 % ≥ 90 % for 2.0 s"
    )
    for _ in range(STORY_LENGTH):
        device.give(MonitorStarted())
    assert len(story(device.memory, now_ns=device.now_ns)) == STORY_LENGTH


def test_a_memory_that_cannot_be_is_named_as_such() -> None:
    memory = msgspec.structs.replace(healthy().memory, condition=DeviceCondition.INIT)
    with pytest.raises(InvalidMemory, match="open where nothing may run; the story ends elsewhere"):
        validate(memory, POLICY)


def test_a_clock_that_stands_still_or_goes_back_opens_nothing() -> None:
    device = overlimit()
    for _ in range(1000):
        device.now_ns -= TICK
        device.give(Read(readings=readings(now_ns=device.now_ns, online_activity_pct=0.0)))
    assert device.memory.condition is DeviceCondition.OVERLIMIT


def test_the_picture_is_drawn_from_the_table() -> None:
    picture = Path(__file__).parents[1] / "device-states.md"
    wanted = draw(POLICY)
    assert picture.read_text() == wanted, "python -m muxflow_decisions.device.picture > libs/decisions/device-states.md"
