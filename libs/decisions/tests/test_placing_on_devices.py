"""Which watched devices take new offline work, and which of them a job gets."""

from __future__ import annotations

import pytest

from muxflow.contracts import DeviceCondition, DeviceState, OnlineState
from muxflow_decisions.matching import Closed, Need, Offer, OpenGpu, Problem, WaitingJob, closed
from muxflow_decisions.matching.devices import LOADS, load
from muxflow_decisions.matching.solve import solve

GIB = 2**30
SECOND = 1_000_000_000


def state(condition: DeviceCondition, *, since_ns: int = 10 * SECOND, cause: str = "") -> DeviceState:
    return DeviceState(node="node-a", gpu="GPU-1", state=condition, since_ns=since_ns, cause=cause)


def online(workload: str | None, peak_pct: float | None) -> OnlineState:
    return OnlineState(node="node-a", gpu="GPU-1", workload=workload, activity_peak_pct=peak_pct)


def test_a_healthy_device_takes_work() -> None:
    assert closed(state(DeviceCondition.HEALTHY)) is None


@pytest.mark.parametrize(
    ("condition", "cause", "told"),
    [
        (DeviceCondition.INIT, "a monitor has started", "not ready yet: a monitor has started"),
        (DeviceCondition.UNHEALTHY, "online activity 72 % ≥ 70 %", "unhealthy: online activity 72 % ≥ 70 %"),
        (DeviceCondition.OVERLIMIT, "", "over its limit"),
        (DeviceCondition.DISABLED, "disabled by an operator: new fans", "disabled by an operator: new fans"),
        (DeviceCondition.DISABLED, "", "disabled"),
    ],
)
def test_a_device_in_any_other_state_takes_none_and_its_cause_is_told(
    condition: DeviceCondition, cause: str, told: str
) -> None:
    assert str(closed(state(condition, cause=cause))) == told


def test_only_healthy_devices_take_work() -> None:
    assert [each for each in DeviceCondition if closed(state(each)) is None] == [DeviceCondition.HEALTHY]


def test_a_device_of_which_its_monitor_has_told_nothing_takes_none() -> None:
    assert closed(None) == Closed("not told of by a monitor yet")


def test_after_an_eviction_a_device_takes_work_once_it_became_healthy_again() -> None:
    healthy = state(DeviceCondition.HEALTHY, since_ns=10 * SECOND)
    assert closed(healthy, evicted_ns=20 * SECOND) is not None
    assert closed(state(DeviceCondition.HEALTHY, since_ns=30 * SECOND), evicted_ns=20 * SECOND) is None
    assert closed(healthy, evicted_ns=9 * SECOND) is None


@pytest.mark.parametrize(
    ("peak_pct", "bucket"), [(0.0, 0), (19.9, 0), (20.0, 1), (59.0, 2), (80.0, 4), (100.0, 4), (None, LOADS - 1)]
)
def test_load_grows_with_the_online_peak_and_what_is_not_known_counts_as_busy(
    peak_pct: float | None, bucket: int
) -> None:
    assert load(watched=True, online=online("chat", peak_pct)) == bucket


def test_processes_that_nobody_registered_count_as_much() -> None:
    assert load(watched=True, online=online(None, 85.0)) == LOADS - 1


def test_a_watched_device_of_which_nothing_was_told_is_busy_and_one_that_nobody_watches_is_calm() -> None:
    assert load(watched=True, online=None) == LOADS - 1
    assert load(watched=False, online=None) == 0


def free(uuid: str, *, memory_gib: int = 16, busy: int = 0) -> OpenGpu:
    return OpenGpu(node="node-a", uuid=uuid, offer=Offer("T4", memory_gib * GIB, ("process",), busy))


def job(memory_gib: int = 8) -> WaitingJob:
    return WaitingJob(key=("default", "x"), need=Need(memory_gib * GIB, (), "process"))


def chosen(*gpus: OpenGpu) -> str:
    ((_, gpu),) = solve(Problem(waiting=(job(),), gpus=gpus)).assignments
    return gpu.uuid


def test_of_gpus_that_suit_alike_a_job_gets_the_calmest_in_whatever_order_they_are_found() -> None:
    gpus = [free("GPU-1", busy=3), free("GPU-2", busy=1), free("GPU-3", busy=4)]
    assert chosen(*gpus) == chosen(*reversed(gpus)) == "GPU-2"


def test_calm_weighs_less_than_a_gpu_that_is_much_too_large() -> None:
    assert chosen(free("GPU-1", busy=LOADS - 1), free("GPU-2", memory_gib=80)) == "GPU-1"
