"""What is measured on a whole MuxFlow, held against what the simulated GPU itself remembers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from muxflow_simgpu import device_busy, total_ns
from protected_machine import SECOND_NS, ProtectedMachine
from workloads import offline_job, until

A100, T4 = 0, 1


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ProtectedMachine]:
    machine = ProtectedMachine(tmp_path / "state")
    yield machine
    machine.stop()
    assert not machine.processes()


def profile(node: ProtectedMachine, kind: str, **names: str) -> dict[str, Any] | None:
    """The newest profile of one kind with these names."""
    found = node.json("profiles")[kind]
    return next((each for each in found if names.items() <= each.items()), None)


def test_a_job_alone_and_a_service_are_measured_as_they_are(node: ProtectedMachine) -> None:
    node.simulate("A100", "T4", profiler__publish_s=0.5)
    node.json("online", "add", "chat", "--gpu", str(T4), "--match", "online_service")
    node.online(T4, rates_per_s=(100.0,), seconds=60)
    job = json.loads(offline_job("steady", batches=10**6))
    job["gpu"]["kinds"] = ["A100"]
    node.json("submit", "-", stdin=json.dumps(job))
    pid = node.running_pid("steady")

    def told() -> dict[str, Any] | None:
        return profile(node, "offline", key="default/steady")

    until(told, 30, "the job is measured")
    measured = told()
    assert measured is not None
    assert (measured["gpu_kind"], measured["confident"], measured["failure"]) == ("A100", True, None)

    # What the device did while that was measured: the log has the times of this machine's other clock.
    end_ns = measured["time_ns"] - (time.time_ns() - time.monotonic_ns())
    begin_ns = end_ns - round(measured["measured_s"] * SECOND_NS)
    kernels = [each for each in node.operations(A100) if each.pid == pid and begin_ns <= each.ended_ns < end_ns]
    busy = total_ns(device_busy(kernels, begin_ns, end_ns)) / (end_ns - begin_ns)
    assert measured["launches_per_s"] == pytest.approx(len(kernels) / measured["measured_s"], rel=0.1)
    assert measured["busy_permille"] == pytest.approx(1000 * busy, rel=0.1)
    assert measured["memory_peak_bytes"] > 2**30

    def expected() -> dict[str, Any] | None:
        service = profile(node, "online", workload="chat", gpu_kind="T4")
        return service if service is not None and service["activity_pct_mean"] else None

    until(expected, 20, "the service is known")
    service = expected()
    assert service is not None
    assert service["gpus"] == 1
    assert service["activity_pct_p99"] <= service["forecast_peak_pct"] <= 100
    assert service["forecast_until_ns"] > time.time_ns()
    table = node.run("profiles").stdout
    assert "default/steady" in table
    assert "chat" in table
