"""Devices get the newest readings that were told, and say so in a few characters."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from muxflow.cli import readings
from muxflow.cli.device_story import without_repeats
from muxflow.client import Received
from muxflow.client.devices import readings_of, up_to_date
from muxflow.contracts import DeviceCondition, DeviceState, DeviceSummary, Gpu, GpuSample, NodeTelemetry

SECOND_NS = 10**9
NOW_NS = 1_790_000_000 * SECOND_NS
GIB = 2**30
DEVICE = DeviceSummary(
    node="vm",
    gpu=Gpu(uuid="GPU-1", kind="T4", memory_bytes=16 * GIB),
    alive=True,
    watched=True,
    state=DeviceCondition.HEALTHY,
    budget_permille=100,
    sample=GpuSample(gpu="GPU-1", utilization_pct=10.0),
    sampled_ns=NOW_NS,
)


def told(time_ns: int, **fields: object) -> NodeTelemetry:
    return NodeTelemetry(node="vm", time_ns=time_ns, gpus=(replace(GpuSample(gpu="GPU-1"), **fields),))


def test_newer_readings_take_the_place_of_those_of_the_last_change() -> None:
    newer = told(NOW_NS + SECOND_NS, utilization_pct=50.0, budget_permille=700)
    (device,) = up_to_date([DEVICE], readings_of(newer))
    assert device.sample == newer.gpus[0]
    assert (device.sampled_ns, device.budget_permille) == (NOW_NS + SECOND_NS, 700)


@pytest.mark.parametrize(
    ("device", "telemetry"),
    [
        (DEVICE, told(NOW_NS - SECOND_NS, utilization_pct=50.0)),
        (replace(DEVICE, node="other"), told(NOW_NS + SECOND_NS)),
        (replace(DEVICE, watched=False), told(NOW_NS + SECOND_NS)),
    ],
    ids=["older", "of another node", "of one that is no longer watched"],
)
def test_readings_that_do_not_count_change_nothing(device: DeviceSummary, telemetry: NodeTelemetry) -> None:
    assert up_to_date([device], readings_of(telemetry)) == (device,)


def test_what_is_not_known_is_a_dash_and_never_nothing() -> None:
    blind = replace(DEVICE, sample=GpuSample(gpu="GPU-1"), budget_permille=None)
    assert readings.busy(blind.sample) == readings.busy(None) == "-"
    assert readings.percent(None) == readings.permille(None) == "-"
    assert readings.online(blind) == readings.offline(blind) == "-"
    assert readings.memory(None, 16 * GIB) == "16 GiB"


@pytest.mark.parametrize("state", DeviceCondition)
def test_a_budget_is_told_only_in_states_that_let_a_job_run(state: DeviceCondition) -> None:
    runs = state in (DeviceCondition.HEALTHY, DeviceCondition.UNHEALTHY)
    assert readings.budget(replace(DEVICE, state=state, budget_permille=50)) == ("5%" if runs else "-")


def test_sm_activity_goes_before_utilization_and_each_says_which_it_is() -> None:
    assert readings.busy(GpuSample(gpu="GPU-1", utilization_pct=70.0)) == "70% time"
    assert readings.busy(GpuSample(gpu="GPU-1", utilization_pct=70.0, sm_activity_pct=31.6)) == "32% SM"


def test_reasons_for_a_lower_clock_are_named_and_idleness_is_none() -> None:
    assert readings.throttled(None) is readings.throttled(0x1) is None
    assert readings.throttled(0x1 | 0x4 | 0x40) == "power cap, too hot (hardware)"


def test_readings_grow_old() -> None:
    assert readings.stale(DEVICE, NOW_NS + 2 * SECOND_NS) is None
    assert readings.stale(DEVICE, NOW_NS + 9 * SECOND_NS) == "no readings for 9.0 s"
    assert readings.stale(replace(DEVICE, watched=False), NOW_NS + 9 * SECOND_NS) is None


@pytest.mark.parametrize(
    ("device", "word"),
    [
        (DEVICE, "healthy"),
        (replace(DEVICE, state=None), "unknown"),
        (replace(DEVICE, alive=False), "lost"),
        (replace(DEVICE, watched=False, state=None), "unwatched"),
    ],
)
def test_a_device_has_one_word_for_how_it_is(device: DeviceSummary, word: str) -> None:
    assert readings.state(device) == word


def test_a_state_that_was_told_again_is_one_line_of_the_story() -> None:
    def heard(epoch: int, since_ns: int, event_id: str) -> Received:
        state = DeviceState(
            id=event_id, node="vm", gpu="GPU-1", state=DeviceCondition.HEALTHY, since_ns=since_ns, epoch=epoch
        )
        return Received(subject="s", kind="devices.state", names={}, time_ns=NOW_NS, sequence=None, event=state)

    first, again, next_one, after_boot = (
        heard(7, 10, "a"),
        heard(7, 10, "a.again.1"),
        heard(8, 20, "b"),
        heard(8, 30, "c"),
    )
    assert without_repeats([first, again, next_one, after_boot]) == [first, next_one, after_boot]
    assert without_repeats([again, next_one]) == [again, next_one]  # all that is left of what was told long ago
    assert without_repeats([]) == []
