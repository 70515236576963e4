"""How the words of a device and of a job combine, and that the policy does not contradict itself."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxflow_decisions.device import FROZEN, DevicePolicy, Gate, GateState, JobPhase, combine, online_activity_pct

HEADER = Path(__file__).parents[3] / "xcuda-preload" / "include" / "muxflow_pages.h"
gates = st.builds(
    Gate,
    state=st.sampled_from(GateState),
    budget_permille=st.integers(0, 1000),
    window_us=st.integers(0, 65_535),
)


@pytest.mark.parametrize(
    ("device", "job", "both"),
    [
        (GateState.FROZEN, GateState.FROZEN, GateState.FROZEN),
        (GateState.FROZEN, GateState.TRICKLE, GateState.FROZEN),
        (GateState.FROZEN, GateState.OPEN, GateState.FROZEN),
        (GateState.TRICKLE, GateState.FROZEN, GateState.FROZEN),
        (GateState.TRICKLE, GateState.TRICKLE, GateState.TRICKLE),
        (GateState.TRICKLE, GateState.OPEN, GateState.FROZEN),
        (GateState.OPEN, GateState.FROZEN, GateState.FROZEN),
        (GateState.OPEN, GateState.TRICKLE, GateState.TRICKLE),
        (GateState.OPEN, GateState.OPEN, GateState.OPEN),
    ],
)
def test_the_stricter_word_holds(device: GateState, job: GateState, both: GateState) -> None:
    assert combine(Gate(state=device), Gate(state=job)).state is both


def test_an_open_job_gets_its_share_of_the_devices_budget() -> None:
    device = Gate(state=GateState.OPEN, budget_permille=600, window_us=2000)
    job = Gate(state=GateState.OPEN, budget_permille=500, window_us=65_535)
    assert combine(device, job) == Gate(state=GateState.OPEN, budget_permille=300, window_us=2000)


def test_a_trickling_job_has_a_budget_of_its_own_and_no_more_than_an_open_device() -> None:
    job = Gate(state=GateState.TRICKLE, budget_permille=50, window_us=500)
    assert combine(Gate(state=GateState.TRICKLE, budget_permille=0, window_us=500), job).budget_permille == 50
    assert combine(Gate(state=GateState.OPEN, budget_permille=20, window_us=500), job).budget_permille == 20


@given(gates, gates)
def test_what_holds_is_never_more_than_either_word_allows(device: Gate, job: Gate) -> None:
    both = combine(device, job)
    assert both.state <= min(device.state, job.state)
    assert both.budget_permille <= job.budget_permille
    assert both.window_us <= min(device.window_us, job.window_us)
    if device.state is GateState.OPEN:
        assert both.budget_permille <= device.budget_permille
    if both.state is GateState.FROZEN:
        assert both == FROZEN


@pytest.mark.parametrize(("kind", "prefix"), [(GateState, "MUX_GATE_"), (JobPhase, "MUX_JOB_")])
def test_the_numbers_are_those_of_the_pages(kind: type[GateState | JobPhase], prefix: str) -> None:
    header = HEADER.read_text()
    for member in kind:
        found = re.search(rf"\b{prefix}{member.name} = (\d+)", header)
        assert found is not None, member
        assert int(found[1]) == member.value


def test_thresholds_that_contradict_each_other_are_refused_by_name() -> None:
    DevicePolicy()
    with pytest.raises(ValueError, match=r"activity_unhealthy_clear_pct.*activity_unhealthy_pct"):
        DevicePolicy(activity_unhealthy_clear_pct=80)
    with pytest.raises(msgspec.ValidationError, match=r"window_min_us.*window_max_us"):
        msgspec.convert({"window_min_us": 3000}, DevicePolicy)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"window": 3000}, DevicePolicy)


@given(st.floats(0, 1), st.floats(0, 0.9))
def test_the_online_activity_is_found_beside_any_offline_work(online: float, offline: float) -> None:
    device_pct = 100 * (1 - (1 - online) * (1 - offline))
    found = online_activity_pct(device_pct=device_pct, offline_pct=100 * offline)
    assert found is not None
    most_lost = 1.0 / (1 - offline)
    assert 100 * online - most_lost - 1e-6 <= found <= 100 * online + 1e-6


@given(st.floats(0, 98), st.floats(-1, 1))
def test_an_idle_online_side_reads_as_idle_whatever_the_rounding(offline: float, rounding: float) -> None:
    device_pct = min(max(offline + rounding, 0), 100)
    found = online_activity_pct(device_pct=device_pct, offline_pct=offline)
    assert found == 0 if offline > 0 else found == device_pct


def test_offline_work_that_never_pauses_hides_the_online_side() -> None:
    assert online_activity_pct(device_pct=100, offline_pct=99) is None


@given(st.floats(0, 1), st.floats(0, 1))
def test_nothing_hides_an_online_side_that_offline_work_keeps_clear_of(online: float, share: float) -> None:
    offline = share * (1 - online)
    found = online_activity_pct(device_pct=100 * (online + offline), offline_pct=100 * offline, apart=True)
    assert found is not None
    assert 100 * online - 1 - 1e-6 <= found <= 100 * online + 1e-6
