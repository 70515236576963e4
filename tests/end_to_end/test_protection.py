"""An online service and an offline job on one simulated GPU, the whole of MuxFlow around them, nothing mocked."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muxflow.contracts import DeviceCondition, JobState
from protected_machine import SECOND_NS, ProtectedMachine
from workloads import lost, until

INIT, HEALTHY, UNHEALTHY, OVERLIMIT = (
    DeviceCondition.INIT,
    DeviceCondition.HEALTHY,
    DeviceCondition.UNHEALTHY,
    DeviceCondition.OVERLIMIT,
)
IDLE = (0.5,)
"""Requests per second of a service that has nothing to do."""
QUICK_POLICY = {"overlimit_after_s": 0.4, "settle_s": 0.3, "relax_s": 0.5, "readmit_s": 1.0}
"""What only makes a test wait is short."""
ROOMY = {"scheduler__sm_share__lowest_pct": 30}
"""Else what is restarted soon after a burst that took the whole GPU runs on a tenth of it, and for long."""
PATIENCE_S = 40.0
SERVICES = ("server", "scheduler", "monitor", "evictor", "executor")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ProtectedMachine]:
    machine = ProtectedMachine(tmp_path / "state")
    yield machine
    machine.stop()
    assert not machine.processes()


def burst(node: ProtectedMachine, seconds: float) -> Any:
    """Have an online service need the whole GPU for a while."""
    return node.online(rates_per_s=(100.0,), seconds=seconds, kernels=4, kernel_us=3000, blocks=4096)


def states(node: ProtectedMachine) -> list[DeviceCondition]:
    return [change.state for change in node.story()]


def stays_healthy(node: ProtectedMachine, seconds: float) -> None:
    node.simulate("T4", lease__node_s=60.0)  # a job that is lost to a starved machine says nothing about the device
    service = node.online(rates_per_s=IDLE, seconds=seconds + 10)
    node.submit("greedy", batches=10**6, kernel_us=2000)
    pid = node.running_pid("greedy")
    began_s = time.monotonic()
    shares = []
    while time.monotonic() - began_s < seconds:
        time.sleep(5)  # what is watched is that nothing happens
        shares.append(node.busy_share({pid}, 4))
        assert node.device().state is HEALTHY, node.story()
    assert min(shares) > 0.75, shares
    assert states(node) == [INIT, HEALTHY]
    assert node.job("greedy").evictions == 0
    assert lost(service.requests()) == []


@pytest.mark.timeout(180)
def test_a_saturating_job_beside_an_idle_service_stays_healthy(node: ProtectedMachine) -> None:
    stays_healthy(node, 20)


@pytest.mark.soak
@pytest.mark.timeout(4500)
def test_and_for_an_hour(node: ProtectedMachine) -> None:
    stays_healthy(node, 3600)


@pytest.mark.timeout(180)
def test_a_burst_slows_freezes_and_evicts_the_job_which_goes_on_later_and_finishes_once(node: ProtectedMachine) -> None:
    policy = {**QUICK_POLICY, "overlimit_after_s": 1.5}  # a busy host skips looks: unhealthy comes first all the same
    node.simulate("A100", policy=policy, evictor__policy__evict_after_s=1.0, **ROOMY)
    alerts = node.follow("alerts", "--follow", "--json")
    try:
        node.submit("victim", batches=500, kernels=10, kernel_us=1000, save_every=0)
        pid = node.running_pid("victim")
        until(lambda: node.busy_share({pid}, 0.5) > 0.5, 10, "it uses the GPU")
        service = burst(node, 8)
        node.wait_state(OVERLIMIT)
        until(lambda: node.busy_share({pid}, 0.2) == 0, 5, "its launches are frozen")
        requests = service.finish()
        assert lost(requests) == []
        job = node.wait_job("victim", lambda job: job.state is JobState.FINISHED, PATIENCE_S, "is finished")
        assert (job.evictions, job.attempt) == (1, 2)
        assert node.ended("victim") == {"jobs.finished": 1}
        story = node.story()
        seen = [change.state for change in story]
        assert seen[:4] == [INIT, HEALTHY, UNHEALTHY, OVERLIMIT], story
        assert seen.count(OVERLIMIT) == 1
        assert "online activity" in story[3].cause
        assert alerts.stdout is not None
        first, last = (json.loads(alerts.stdout.readline())["event"] for _ in range(2))
        assert [each["job"] for each in (first, last)] == ["victim", "victim"]
        assert first["total_ms"] is None
        assert last["total_ms"] > 0
        assert "online activity" in first["cause"]
        assert first["before"]["online_activity_pct"] > 50
        resumed = [json.loads(line) for line in node.run("logs", "victim").stdout.splitlines()]
        assert resumed[0]["from_batch"] > 0, "it went on from its checkpoint"
    finally:
        alerts.kill()
        alerts.communicate()


@pytest.mark.timeout(180)
def test_the_calm_time_doubles_on_a_device_that_flaps(node: ProtectedMachine) -> None:
    node.simulate("A100", policy=QUICK_POLICY)
    for _ in range(3):
        service = burst(node, 2.5)
        node.wait_state(OVERLIMIT)
        service.finish()
        node.wait_state(HEALTHY, PATIENCE_S)
    story = node.story()
    calm = [(before, after) for before, after in itertools.pairwise(story) if before.state is OVERLIMIT]
    assert [after.cause for _, after in calm] == ["calm for 1.0 s", "calm for 2.0 s", "calm for 4.0 s"], story
    for (before, after), calm_s in zip(calm, (1, 2, 4), strict=True):
        assert after.state is HEALTHY
        assert after.since_ns - before.since_ns >= calm_s * SECOND_NS


@pytest.mark.timeout(120)
def test_with_the_monitor_dead_offline_launches_freeze_and_go_on_with_the_next(node: ProtectedMachine) -> None:
    node.simulate("T4", policy=QUICK_POLICY)
    service = node.online(rates_per_s=(20.0,), seconds=20)
    node.submit("job", batches=10**6)
    pid = node.running_pid("job")
    until(lambda: node.busy_share({pid}, 0.5) > 0.3, 10, "it uses the GPU")
    with node.stopped("monitor"):
        until(lambda: node.busy_share({pid}, 0.3) == 0, 5, "it is frozen")
    node.kill("monitor")
    until(lambda: node.busy_share({pid}, 0.5) > 0.3, 15, "it goes on")
    assert lost(service.finish()) == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "names",
    [
        pytest.param((name,), id=name, marks=[] if name in ("monitor", "server") else pytest.mark.soak)
        for name in SERVICES
    ]
    + [pytest.param(SERVICES, id="all")],
)
def test_the_online_side_notices_nothing_when_services_are_killed_in_a_burst(
    node: ProtectedMachine, names: tuple[str, ...]
) -> None:
    node.simulate("A100", policy=QUICK_POLICY, evictor__policy__evict_after_s=0.5, **ROOMY)
    calm = node.online(rates_per_s=(20.0,), seconds=12)
    node.submit("job", batches=400, kernels=10, kernel_us=1000)
    node.running_pid("job")
    loud = burst(node, 5)
    node.kill(*names)
    assert lost(loud.finish()) == []
    assert lost(calm.finish()) == []
    node.wait_job("job", lambda job: job.state is JobState.FINISHED, PATIENCE_S, "is finished")
    assert node.ended("job") == {"jobs.finished": 1}


@pytest.mark.timeout(120)
def test_protection_goes_on_while_the_bus_is_away_and_offline_work_ends_with_the_lease(node: ProtectedMachine) -> None:
    node.simulate("A100", policy=QUICK_POLICY, evictor__policy__evict_after_s=0.5)
    node.submit("job", batches=10**6)
    pid = node.running_pid("job")
    gpus = node.gpus
    with node.stopped("server"):
        service = burst(node, 3)
        until(
            lambda: not any(client.pid == pid for client in gpus.clients(0)),
            15,
            "the job is evicted, or its lease over",
        )
        assert lost(service.finish()) == []
    node.wait_job("job", lambda job: job.state is JobState.RUNNING and job.attempt > 1, PATIENCE_S, "runs again")


# What MPS does to neighbours


@pytest.mark.timeout(120)
def test_a_job_killed_from_outside_with_work_in_flight_takes_the_online_side_down(node: ProtectedMachine) -> None:
    """The simulated GPU behaves as MPS does: this is what the evictions below must never cause."""
    node.simulate("A100")
    service = node.online(rates_per_s=(50.0,), seconds=10)
    node.submit("job", batches=10**6, kernel_us=5000)
    pid = node.running_pid("job")
    until(lambda: node.busy_share({pid}, 0.3) > 0.3, 10, "it uses the GPU")
    os.kill(pid, signal.SIGKILL)
    assert any("MPS" in error for error in lost(service.finish()))


def evict_once(node: ProtectedMachine) -> None:
    pid = node.running_pid("job")
    until(lambda: node.busy_share({pid}, 0.1) > 0.1, 10, "it uses the GPU")
    node.portal.evict(node.device())
    until(lambda: not Path(f"/proc/{pid}").exists(), 15, "it is gone")


def evicts(node: ProtectedMachine, times: int) -> None:
    node.simulate("A100", policy=QUICK_POLICY)
    service = node.online(rates_per_s=(50.0,), seconds=4.0 * times)
    node.submit("job", batches=10**6, save_every=0)
    for _ in range(times):
        evict_once(node)
    node.wait_job("job", lambda job: job.evictions >= times, PATIENCE_S, "has been evicted so often")
    service.end()
    requests = service.requests()
    assert len(requests) > 10 * times
    assert lost(requests) == []


@pytest.mark.timeout(400)
def test_twenty_evictions_cost_the_online_side_nothing(node: ProtectedMachine) -> None:
    evicts(node, 20)


@pytest.mark.soak
@pytest.mark.timeout(6000)
def test_nor_do_a_thousand(node: ProtectedMachine) -> None:
    evicts(node, 1000)
