"""Object stores, against a real server and beside another client of the same format."""

from __future__ import annotations

import os

import pytest
from nats.aio.client import Client

from muxflow.bus import Bus, ObjectDamaged
from muxflow.bus.objects import CHUNK_BYTES
from muxflow.testing import TestServer

STORE = "models"


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
async def test_an_object_is_read_as_it_was_written(bus: Bus, size: int) -> None:
    data = os.urandom(size)
    store = bus.objects(STORE)
    await store.put("a name/with: all sorts", data)
    assert await store.get("a name/with: all sorts") == data
    assert await store.names() == ["a name/with: all sorts"]


async def test_there_is_no_object_that_nobody_wrote(bus: Bus) -> None:
    store = bus.objects(STORE)
    assert await store.get("x") is None
    await store.delete("x")
    assert await store.names() == []


async def test_a_newer_object_takes_the_place_of_the_older_one_and_its_chunks_go(bus: Bus) -> None:
    store = bus.objects(STORE)
    await store.put("x", b"1" * (2 * CHUNK_BYTES))
    await store.put("x", b"2")
    assert await store.get("x") == b"2"
    assert await _messages(bus) == 2  # one chunk, one name


async def test_a_deleted_object_is_gone_with_its_chunks(bus: Bus) -> None:
    store = bus.objects(STORE)
    await store.put("x", b"1" * (2 * CHUNK_BYTES))
    await store.put("y", b"2")
    await store.delete("x")
    assert await store.get("x") is None
    assert await store.names() == ["y"]
    assert await _messages(bus) == 3


async def test_an_object_whose_chunks_are_gone_or_others_is_damaged_and_can_be_replaced(bus: Bus) -> None:
    store = bus.objects(STORE)
    await store.put("x", b"12")
    await bus.requests.api("STREAM.PURGE.OBJ_models", {"filter": "$O.models.C.>"}, timeout_s=5)
    with pytest.raises(ObjectDamaged, match=r"models/x: 0 of 2 bytes"):
        await store.get("x")
    await store.put("x", b"34")
    assert await store.get("x") == b"34"


async def test_what_is_no_object_is_damaged_and_can_be_replaced(bus: Bus) -> None:
    store = bus.objects(STORE)
    await bus.publish_raw("$O.models.M.eA==", b"not JSON", message_id="m")
    with pytest.raises(ObjectDamaged, match="models/x"):
        await store.get("x")
    await store.put("x", b"34")
    assert await store.get("x") == b"34"


async def test_other_clients_read_what_we_wrote_and_the_other_way_round(server: TestServer, bus: Bus) -> None:
    client = Client()
    await client.connect(server.url)
    theirs = await client.jetstream().object_store(STORE)
    await bus.objects(STORE).put("ours", b"1" * (CHUNK_BYTES + 1))
    await theirs.put("theirs", b"2" * (CHUNK_BYTES + 1))
    assert (await theirs.get("ours")).data == b"1" * (CHUNK_BYTES + 1)
    assert await bus.objects(STORE).get("theirs") == b"2" * (CHUNK_BYTES + 1)
    await client.close()


async def _messages(bus: Bus) -> int:
    state = (await bus.requests.api("STREAM.INFO.OBJ_models", timeout_s=5))["state"]
    return int(state["messages"])
