"""Traps of the connection: it is never given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from structlog.testing import capture_logs

from muxflow.bus import Bus, BusSettings, Message
from muxflow.bus.credentials import Principal, ensure
from muxflow.contracts import NodeTelemetry, Role
from muxflow.contracts.catalogue import TELEMETRY
from muxflow.testing import TestServer, running_server
from proxy import Proxy


def quick(server_url: str, **changes: object) -> BusSettings:
    return msgspec.structs.replace(BusSettings(servers=(server_url,)), **changes)


async def until(condition: Callable[[], bool], *, within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_server_that_is_away_for_more_than_sixty_attempts_is_found_again(server: TestServer) -> None:
    settings = quick(server.url, reconnect_wait_s=0.005, reconnect_wait_max_s=0.005)
    got: list[str] = []
    async with await Bus.connect(settings, source="a@b") as bus:
        await bus.subscribe(TELEMETRY, lambda message: got.append(message.names["node"]))
        with capture_logs() as logs:
            await server.kill()
            async with asyncio.timeout(20):
                while sum(entry["event"] == "client error" for entry in logs) < 80:
                    await asyncio.sleep(0.01)
            await server.start()
            await asyncio.wait_for(bus.connection.wait_connected(), 5)
        assert [entry["event"] for entry in logs if entry["log_level"] != "debug"] == [
            "no connection to the bus, trying again",
            "connected",
        ]
        await bus.publish_live(TELEMETRY, NodeTelemetry(node="n", gpus=()), node="n")
        await until(lambda: got == ["n"])


async def test_a_callback_that_raises_does_not_keep_the_connection_from_coming_back(
    bus: Bus, server: TestServer
) -> None:
    states: list[bool] = []

    def raises(connected: bool) -> None:
        states.append(connected)
        raise RuntimeError("broken callback")

    async def raises_later(connected: bool) -> None:
        raise RuntimeError("broken callback")

    bus.on_state(raises)
    bus.on_state(raises_later)
    await server.kill()
    await server.start()
    await until(lambda: states == [False, True])
    assert bus.connected


async def test_connecting_waits_for_a_server_that_is_not_there_yet(server: TestServer) -> None:
    await server.kill()
    connecting = asyncio.create_task(Bus.connect(server.settings(), source="a@b"))
    await asyncio.sleep(0.3)
    assert not connecting.done()
    await server.start()
    bus = await asyncio.wait_for(connecting, 5)
    await bus.close()


async def test_connecting_in_the_background_returns_at_once(server: TestServer) -> None:
    await server.kill()
    bus = await asyncio.wait_for(Bus.connect(server.settings(), source="a@b", wait=False), 1)
    assert not bus.connected
    await server.start()
    await asyncio.wait_for(bus.connection.wait_connected(), 5)
    await bus.close()


async def test_a_connection_that_has_gone_silent_is_made_anew(server: TestServer) -> None:
    proxy = Proxy("127.0.0.1", server.process.port)
    await proxy.start()
    settings = quick(proxy.url, ping_interval_s=0.2, ping_timeout_s=0.5, connect_timeout_s=0.5)
    async with await Bus.connect(settings, source="a@b") as bus:
        proxy.cut()
        began = time.monotonic()
        await until(lambda: not bus.connected)
        assert time.monotonic() - began < 3
        proxy.mend()
        await asyncio.wait_for(bus.connection.wait_connected(), 10)
        await bus.requests.api("INFO", timeout_s=5)
    await proxy.stop()


async def test_an_error_that_ends_nats_pys_client_for_good_does_not_end_ours(server: TestServer) -> None:
    """The server closes a connection that sends too large a message, and nats-py then closes its client."""
    async with await server.connect() as bus:
        lost = asyncio.Event()
        bus.on_state(lambda connected: None if connected else lost.set())
        client = bus.connection.client
        client._max_payload = 1 << 30
        await client.publish("muxflow.telemetry.n", b"x" * (3 << 20))
        await asyncio.wait_for(lost.wait(), 5)
        await asyncio.wait_for(bus.connection.wait_connected(), 5)
        await bus.requests.api("INFO", timeout_s=5)


async def test_unknown_credentials_are_named_once_and_tried_again(tmp_path: Path) -> None:
    stranger = Principal(role=Role.OPERATOR)
    ensure(tmp_path / "other", [stranger])
    async with running_server(principals=[Principal(role=Role.OBSERVER)], provisioned=False) as server:
        settings = quick(server.url, credentials=str(stranger.seed_path(tmp_path / "other")))
        with capture_logs() as logs:
            bus = await Bus.connect(settings, source="a@b", wait=False)
            await asyncio.sleep(0.8)
            await bus.close()
    warnings = [entry["reason"] for entry in logs if entry["log_level"] == "warning"]
    assert len(warnings) == 1
    assert "authorization violation" in warnings[0].lower()


async def test_a_missing_seed_file_is_named(server: TestServer) -> None:
    with capture_logs() as logs:
        bus = await Bus.connect(quick(server.url, credentials="/nowhere/scheduler.nk"), source="a@b", wait=False)
        await asyncio.sleep(0.2)
        await bus.close()
    assert any("scheduler.nk: no such file" in entry.get("reason", "") for entry in logs)


async def test_closing_while_the_server_is_away_takes_no_time(server: TestServer) -> None:
    bus = await server.connect()
    await bus.subscribe(TELEMETRY, _ignore)
    await bus.read(TELEMETRY, _ignore)
    await server.kill()
    began = time.monotonic()
    await bus.close()
    assert time.monotonic() - began < 3
    await server.start()


async def test_a_server_that_restarts_every_half_second_is_followed(bus: Bus, server: TestServer) -> None:
    async def restart() -> None:
        for _ in range(5):
            await asyncio.sleep(0.5)
            await server.kill()
            await server.start()

    from muxflow.contracts import GpuDecision
    from muxflow.contracts.catalogue import DECISIONS

    seen: set[int] = set()
    await bus.read(DECISIONS, lambda message: seen.add(message.event.generation), start="all")
    restarting = asyncio.create_task(restart())
    count = 0
    while not restarting.done():
        decision = GpuDecision(node="n", gpu=str(count), term=1, generation=count)
        await bus.publish(DECISIONS, decision, node="n", gpu=str(count), deadline_s=20)
        count += 1
    await until(lambda: seen == set(range(count)))


def _ignore(message: Message[NodeTelemetry]) -> None:
    del message


async def test_a_subscription_that_is_given_up_before_it_is_confirmed_does_not_break_the_connection(bus: Bus) -> None:
    states: list[bool] = []
    bus.connection.on_state(states.append)
    for _ in range(20):
        giving_up = asyncio.ensure_future(bus.subscribe(TELEMETRY, lambda _: None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        giving_up.cancel()
        await asyncio.wait((giving_up,))
    got: list[str] = []
    await bus.subscribe(TELEMETRY, lambda message: got.append(message.names["node"]))
    await bus.publish_live(TELEMETRY, NodeTelemetry(node="n", gpus=()), node="n")
    await until(lambda: got == ["n"])
    assert states == []


async def test_an_answer_that_nobody_waits_for_any_more_does_not_end_the_reader(bus: Bus) -> None:
    states: list[bool] = []
    bus.connection.on_state(states.append)
    flushing = asyncio.ensure_future(bus.connection.client.flush())
    await asyncio.sleep(0)
    flushing.cancel()
    await asyncio.wait((flushing,))
    got: list[str] = []
    await bus.subscribe(TELEMETRY, lambda message: got.append(message.names["node"]))
    await bus.publish_live(TELEMETRY, NodeTelemetry(node="n", gpus=()), node="n")
    await until(lambda: got == ["n"])
    assert states == []


async def test_a_client_whose_reader_has_ended_is_replaced(bus: Bus) -> None:
    states: list[bool] = []
    bus.connection.on_state(states.append)
    client: Any = bus.connection.client
    client._reading_task.cancel()
    await until(lambda: states == [False, True])
    assert bus.connection.client is not client
