from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from muxflow.bus import Bus, KeyExists, Lease
from muxflow.contracts import LeaderLease
from muxflow.contracts.catalogue import BUCKET_LEADER
from muxflow.testing import TestServer, running_server

TTL_S = 1.5


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    async with running_server(ttl_s={"leader": TTL_S}) as running:
        yield running


def lease(bus: Bus, holder: str) -> Lease:
    return bus.lease(
        BUCKET_LEADER, "scheduler", lambda: LeaderLease(holder=holder, time_ns=time.time_ns()), ttl_s=TTL_S
    )


async def test_one_holder_at_a_time_each_with_a_higher_term(bus: Bus) -> None:
    first, second = lease(bus, "first"), lease(bus, "second")
    one = await first.acquire()
    assert not await second.try_acquire()
    await first.release()
    two = await asyncio.wait_for(second.acquire(), 1)
    assert (first.held, second.held) == (False, True)
    assert two > one
    await second.release()


async def test_a_lease_is_held_for_as_long_as_it_is_renewed(bus: Bus) -> None:
    mine, other = lease(bus, "mine"), lease(bus, "other")
    await mine.acquire()
    until = time.monotonic() + 2.5 * TTL_S
    while time.monotonic() < until:
        assert mine.held
        assert not await other.try_acquire()
        await asyncio.sleep(0.1)
    await mine.release()


async def test_a_holder_that_vanishes_is_followed_within_its_ttl_and_a_bit(server: TestServer, bus: Bus) -> None:
    gone = await server.connect()
    vanishing = lease(gone, "vanishing")
    await vanishing.acquire()
    assert vanishing._renewer is not None
    vanishing._renewer.cancel()
    began = time.monotonic()
    successor = lease(bus, "successor")
    await asyncio.wait_for(successor.acquire(), 2 * TTL_S)
    assert not vanishing.held, "two holders"
    assert time.monotonic() - began < TTL_S + 1
    await successor.release()
    await gone.close()


async def test_an_outage_shorter_than_the_ttl_is_survived(bus: Bus, server: TestServer) -> None:
    mine = lease(bus, "mine")
    term = await mine.acquire()
    for _ in range(3):
        await server.kill()
        await asyncio.sleep(0.3)
        await server.start()
        await asyncio.sleep(TTL_S / 2)
    assert (mine.held, mine.lost.is_set(), mine.term) == (True, False, term)
    await mine.release()


async def test_an_outage_longer_than_the_ttl_ends_the_lease_here_first(bus: Bus, server: TestServer) -> None:
    told = asyncio.Event()
    mine = bus.lease(BUCKET_LEADER, "x", lambda: LeaderLease(holder="m", time_ns=1), ttl_s=TTL_S, on_lost=told.set)
    await mine.acquire()
    await server.kill()
    began = time.monotonic()
    await asyncio.wait_for(told.wait(), 2 * TTL_S)
    assert time.monotonic() - began <= TTL_S + 0.2
    assert not mine.held
    await server.start()
    await asyncio.wait_for(mine.acquire(), 3 * TTL_S)
    await mine.release()


async def test_a_lease_that_was_taken_away_is_noticed(bus: Bus) -> None:
    mine = lease(bus, "mine")
    await mine.acquire()
    await bus.kv(BUCKET_LEADER).delete("scheduler")
    await asyncio.wait_for(mine.lost.wait(), TTL_S)
    assert not mine.held


async def test_renewing_keeps_the_buckets_ttl(bus: Bus) -> None:
    """A per-key TTL would be dropped by an update; the bucket's is not."""
    bucket = bus.kv(BUCKET_LEADER)
    revision = await bucket.create("k", LeaderLease(holder="a", time_ns=1))
    for _ in range(3):
        await asyncio.sleep(TTL_S / 3)
        revision = await bucket.update("k", LeaderLease(holder="a", time_ns=1), last=revision)
    assert await bucket.get("k") is not None
    with pytest.raises(KeyExists):
        await bucket.create("k", LeaderLease(holder="b", time_ns=1))
    async with asyncio.timeout(TTL_S + 1):
        while await bucket.get("k") is not None:
            await asyncio.sleep(0.02)
    await bucket.create("k", LeaderLease(holder="b", time_ns=1))
