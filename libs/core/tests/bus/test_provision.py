from __future__ import annotations

import pytest

from muxflow.bus import Bus, Entry
from muxflow.bus.provision import provision
from muxflow.bus.requests import ApiError
from muxflow.contracts import BUCKETS, DURABLES, STREAMS, LeaderLease
from muxflow.contracts.catalogue import BUCKET_LEADER, OBJECT_STORES
from muxflow.testing import running_server


async def test_an_empty_server_gets_everything_in_the_catalogue() -> None:
    async with running_server(provisioned=False) as server, await server.connect() as bus:
        made = await provision(bus)
        names = (await bus.requests.api("STREAM.NAMES", timeout_s=5))["streams"]
    assert {change.name for change in made if change.kind == "stream"} == set(names)
    assert len(names) == len(STREAMS) + len(BUCKETS) + len(OBJECT_STORES)
    assert sum(change.kind == "durable" for change in made) == len(DURABLES)
    assert {change.action for change in made} == {"created"}


async def test_a_second_time_nothing_is_changed(bus: Bus) -> None:
    assert await provision(bus) == []


async def test_what_differs_is_changed_and_named_and_no_data_is_lost(bus: Bus) -> None:
    bucket = bus.kv(BUCKET_LEADER)
    await bucket.create("k", LeaderLease(holder="h", time_ns=1))
    changes = await provision(bus, ttl_s={"leader": 60})
    assert [(change.name, change.action, change.settings) for change in changes] == [
        ("KV_leader", "updated", ("max_age", "duplicate_window"))
    ]
    assert isinstance(await bucket.get("k"), Entry)
    assert await provision(bus, ttl_s={"leader": 60}) == []


async def test_a_durable_that_somebody_changed_is_put_right(bus: Bus) -> None:
    """Binding to a durable keeps whatever settings it has; provisioning compares them."""
    config = (await bus.requests.api("CONSUMER.INFO.JOBS.scheduler", timeout_s=5))["config"]
    changed = {**config, "ack_wait": 1_000_000_000, "max_deliver": 2}
    request = {"stream_name": "JOBS", "config": changed, "action": "update"}
    await bus.requests.api("CONSUMER.CREATE.JOBS.scheduler", request, timeout_s=5)
    changes = await provision(bus)
    assert [(change.name, change.settings) for change in changes] == [("JOBS.scheduler", ("ack_wait", "max_deliver"))]
    after = (await bus.requests.api("CONSUMER.INFO.JOBS.scheduler", timeout_s=5))["config"]
    assert after == config


async def test_a_durable_that_was_deleted_is_made_again(bus: Bus) -> None:
    await bus.requests.api("CONSUMER.DELETE.JOBS.scheduler", timeout_s=5)
    assert [(change.name, change.action) for change in await provision(bus)] == [("JOBS.scheduler", "created")]


async def test_a_change_that_the_server_refuses_is_an_error(bus: Bus) -> None:
    await bus.requests.api("STREAM.DELETE.TELEMETRY", timeout_s=5)
    request = {"name": "TELEMETRY", "subjects": ["muxflow.telemetry.>"], "storage": "file"}
    await bus.requests.api("STREAM.CREATE.TELEMETRY", request, timeout_s=5)
    with pytest.raises(ApiError, match="storage"):
        await provision(bus)
