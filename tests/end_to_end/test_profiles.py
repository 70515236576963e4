"""What is measured on a whole MuxFlow, held against what the simulated GPU itself remembers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muxflow.contracts import OfflineProfile, OnlineProfile
from muxflow_simgpu import device_busy, total_ns
from protected_machine import SECOND_NS, ProtectedMachine
from workloads import offline_job, until

A100, T4 = 0, 1
GIB = 2**30


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ProtectedMachine]:
    machine = ProtectedMachine(tmp_path / "state")
    yield machine
    machine.stop()
    assert not machine.processes()


def newest(node: ProtectedMachine, kind: str) -> Any:
    """The newest profile of one kind; None before there is one."""
    told = node.portal.events(f"profiles.{kind}")
    return told[-1].event if told else None


def test_a_job_alone_and_a_service_are_measured_as_they_are(node: ProtectedMachine) -> None:
    node.simulate("A100", "T4", profiler__publish_s=0.5)
    job = json.loads(offline_job("steady", batches=10**6))
    job["gpu"]["kinds"] = ["A100"]
    node.json("submit", "-", stdin=json.dumps(job))
    node.json("online", "add", "chat", "--gpu", str(T4), "--match", "online_service")
    node.online(T4, rates_per_s=(100.0,), seconds=60)
    pid = node.running_pid("steady")
    until(lambda: newest(node, "offline"), 40, "the job is measured")
    measured: OfflineProfile = newest(node, "offline")
    assert (measured.key, measured.gpu_kind) == ("default/steady", "A100")
    assert (measured.confident, measured.failure) == (True, None)
    assert measured.launches_per_s is not None

    # What the device did while that was measured: its log has the times of this machine's other clock.
    end_ns = measured.time_ns - (time.time_ns() - time.monotonic_ns())
    begin_ns = end_ns - round(measured.measured_s * SECOND_NS)
    kernels = [each for each in node.operations(A100) if each.pid == pid and begin_ns <= each.ended_ns < end_ns]
    assert measured.launches_per_s == pytest.approx(len(kernels) / measured.measured_s, rel=0.1)
    busy_ns = total_ns(device_busy(kernels, begin_ns, end_ns))
    assert measured.busy_permille == pytest.approx(1000 * busy_ns / (end_ns - begin_ns), rel=0.1)
    assert measured.memory_peak_bytes is not None
    assert measured.memory_peak_bytes > GIB

    def known() -> bool:
        service = newest(node, "online")
        return service is not None and bool(service.activity_pct_mean)

    until(known, 20, "the service is known")
    service: OnlineProfile = newest(node, "online")
    assert (service.workload, service.gpu_kind, service.gpus) == ("chat", "T4", 1)
    assert service.activity_pct_p99 is not None
    assert service.forecast_peak_pct is not None
    assert service.activity_pct_p99 <= service.forecast_peak_pct <= 100
    assert service.forecast_until_ns > time.time_ns()
    table = node.run("profiles").stdout
    assert "default/steady" in table
    assert "chat" in table
