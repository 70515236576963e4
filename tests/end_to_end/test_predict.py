"""A prediction on a whole MuxFlow, from a job file to a line of a table."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from muxflow.bus import Bus, BusSettings
from muxflow.bus.credentials import Principal
from muxflow.contracts import OfflineProfile, Role
from muxflow.contracts.catalogue import PROFILES_OFFLINE
from muxflow.contracts.queries import PredictReply
from muxflow.discovery import machine as connection
from protected_machine import ProtectedMachine
from workloads import offline_job, until


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ProtectedMachine]:
    machine = ProtectedMachine(tmp_path / "state")
    yield machine
    machine.stop()
    assert not machine.processes()


def test_a_job_file_is_predicted_beside_a_service_by_the_shipped_measurements(
    node: ProtectedMachine, tmp_path: Path
) -> None:
    node.simulate("A100", profiler__publish_s=0.5, predictor__settle_s=0)
    node.json("online", "add", "chat", "--gpu", "0", "--match", "online_service")
    node.online(rates_per_s=(50.0,), seconds=60)
    file = tmp_path / "job.json"
    file.write_text(offline_job("steady", batches=1))
    found: dict[str, Any] = {}

    def predicted() -> PredictReply:
        reply = msgspec.convert(node.json("predict", str(file), "--gpu", "A100"), PredictReply)
        found.update({each.workload or "nobody": each for each in reply.predictions})
        return reply

    def known() -> bool:
        reply = predicted()
        return reply.model is not None and "chat" in found

    until(known, 40, lambda: f"a model and the service are known: {found}")
    assert found["nobody"].speed.normalized_throughput == 1
    assert (found["chat"].speed.basis, found["chat"].measured) == ("assumed", None)
    asyncio.run(_measured_alone(node, json.loads(offline_job("steady", batches=1))["name"]))
    until(lambda: predicted().profiled, 10, "the job's profile is known")
    speed = found["chat"].speed
    assert speed.basis == "model"
    assert 0 <= speed.low <= speed.normalized_throughput <= speed.high
    table = node.run("predict", str(file), "--gpu", "A100").stdout
    assert "chat" in table
    assert "simulated GPUs" in table


async def _measured_alone(node: ProtectedMachine, job: str) -> None:
    """Say so in the profiler's place: to measure it takes longer than this test may."""
    known = connection(directory=node.state_dir)
    profiler = Principal(role=Role.PROFILER)
    settings = BusSettings(
        servers=(known.server,),
        credentials=str(profiler.seed_path(node.state_dir / "credentials")),
        inbox_prefix=profiler.inbox_prefix,
    )
    profile = OfflineProfile(
        key=f"default/{job}", gpu_kind="A100", busy_permille=890, kernel_time_us_mean=500, launches_per_s=1780
    )
    async with await Bus.connect(settings, source="profiler@test") as bus:
        await bus.publish(PROFILES_OFFLINE, profile, key=profile.key, gpu_kind="A100")
