from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muxflow.bus import Bus, Outbox, OutboxFull, PublishRefused
from muxflow.contracts import GpuDecision
from muxflow.contracts.catalogue import DECISIONS
from muxflow.testing import TestServer


def decision(generation: int, gpu: str = "g") -> GpuDecision:
    return GpuDecision(node="n", gpu=gpu, term=1, generation=generation)


async def until(condition: Callable[[], bool], *, within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_is_put_is_published_in_order_and_then_forgotten(bus: Bus, tmp_path: Path) -> None:
    got: list[int] = []
    delivered: list[str] = []
    await bus.read(DECISIONS, lambda message: got.append(message.event.generation), start="all")
    outbox = Outbox(tmp_path / "outbox.sqlite", source="executor@n")
    await outbox.open()
    outbox.on_delivered(delivered.append)
    ids = [
        await outbox.put(DECISIONS, decision(number, str(number)), node="n", gpu=str(number)) for number in range(50)
    ]
    assert outbox.pending == 50
    outbox.drain_to(bus)
    await asyncio.wait_for(outbox.delivered(ids[-1]), 10)
    await until(lambda: got == list(range(50)))
    assert (outbox.pending, delivered) == (0, ids)
    await outbox.close()


async def test_events_put_while_the_bus_is_away_arrive_when_it_is_back(
    bus: Bus, server: TestServer, tmp_path: Path
) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite", source="executor@n")
    await outbox.open()
    outbox.drain_to(bus)
    await server.kill()
    event_id = await outbox.put(DECISIONS, decision(1), node="n", gpu="g")
    await asyncio.sleep(0.3)
    assert outbox.pending == 1
    await server.start()
    await asyncio.wait_for(outbox.delivered(event_id), 10)
    message = await bus.last(DECISIONS, node="n", gpu="g")
    assert message is not None
    assert (message.event.id, message.event.source) == (event_id, "executor@n")
    await outbox.close()


async def test_what_put_has_returned_for_survives_kill_9_and_is_stored_once(bus: Bus, tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    writer = tmp_path / "writer.py"
    writer.write_text(
        "import asyncio, pathlib, sys\n"
        "from muxflow.bus import Outbox\n"
        "from muxflow.contracts import GpuDecision\n"
        "from muxflow.contracts.catalogue import DECISIONS\n"
        "async def main():\n"
        "    outbox = Outbox(pathlib.Path(sys.argv[1]), source='executor@n')\n"
        "    await outbox.open()\n"
        "    for number in range(10**6):\n"
        "        event = GpuDecision(id=f'e{number}', node='n', gpu='g', term=1, generation=number)\n"
        "        await outbox.put(DECISIONS, event, node='n', gpu=f'g{number}')\n"
        "        print(number, flush=True)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, writer, path], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 100:
        pass
    process.send_signal(signal.SIGKILL)
    told = 100 + len(process.stdout.read().splitlines())
    process.wait()
    process.stdout.close()
    for _ in range(2):  # the second time as after a crash between the ack and the deletion
        copy = path.read_bytes(), path.with_name(f"{path.name}-wal").read_bytes()
        outbox = Outbox(path, source="executor@n")
        await outbox.open()
        assert told < outbox.pending <= told + 2
        outbox.drain_to(bus)
        await until(lambda outbox=outbox: outbox.pending == 0, within_s=20)  # type: ignore[misc]
        await outbox.close()
        path.write_bytes(copy[0])
        path.with_name(f"{path.name}-wal").write_bytes(copy[1])
    state = (await bus.requests.api("STREAM.INFO.DECISIONS", timeout_s=5))["state"]
    assert told < state["messages"] == state["last_seq"] <= told + 2


async def test_a_full_outbox_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite", source="executor@n", max_rows=3)
    await outbox.open()
    for number in range(3):
        await outbox.put(DECISIONS, decision(number), node="n", gpu="g")
    with pytest.raises(OutboxFull, match="3 events"):
        await outbox.put(DECISIONS, decision(4), node="n", gpu="g")
    assert outbox.pending == 3
    await outbox.close()


async def test_many_puts_at_once_share_a_commit(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite", source="executor@n")
    await outbox.open()
    await asyncio.gather(*(outbox.put(DECISIONS, decision(number), node="n", gpu="g") for number in range(500)))
    await outbox.close()
    again = Outbox(tmp_path / "outbox.sqlite", source="executor@n")
    await again.open()
    assert again.pending == 500
    await again.close()


async def test_a_file_that_is_no_database_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(b"this is no database, and longer than its header" * 10)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        await Outbox(path, source="executor@n").open()


async def test_a_refused_event_is_kept_and_tried_again_and_does_not_hold_up_the_others(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muxflow.bus.outbox._REFUSED_WAIT_S", 0.05)
    tries: list[str] = []
    publish, refusing = bus.publish_raw, True

    async def publish_raw(address: str, data: bytes, **options: Any) -> Any:
        if refusing and '"generation":1,' in data.decode():
            tries.append(address)
            raise PublishRefused(0, "not today")
        return await publish(address, data, **options)

    monkeypatch.setattr(bus, "publish_raw", publish_raw)
    outbox = Outbox(tmp_path / "outbox.sqlite", source="executor@n")
    await outbox.open()
    refused = await outbox.put(DECISIONS, decision(1), node="n", gpu="g1")
    other = await outbox.put(DECISIONS, decision(2), node="n", gpu="g2")
    outbox.drain_to(bus)
    await asyncio.wait_for(outbox.delivered(other), 10)
    await until(lambda: len(tries) > 2)
    assert outbox.pending == 1
    refusing = False
    await asyncio.wait_for(outbox.delivered(refused), 10)
    await outbox.close()


async def test_a_disk_that_takes_nothing_for_a_while_stops_no_publishing(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muxflow.bus.outbox._DISK_WAIT_S", 0.05)
    outbox = Outbox(tmp_path / "outbox.sqlite", source="executor@n")
    await outbox.open()
    ids = [await outbox.put(DECISIONS, decision(number), node="n", gpu=f"g{number}") for number in (1, 2)]
    locker = sqlite3.connect(tmp_path / "outbox.sqlite", isolation_level=None)
    failures: list[BaseException] = []
    run, failing = outbox._run, True

    async def refuse(statement: str, arguments: tuple[object, ...]) -> int:
        if failing:
            raise sqlite3.OperationalError("database or disk is full")
        return await run(statement, arguments)

    monkeypatch.setattr(outbox, "_run", refuse)
    outbox.drain_to(bus, on_failure=failures.append)
    for event_id in ids:
        await asyncio.wait_for(outbox.delivered(event_id), 10)
    assert locker.execute("select count(*) from outbox").fetchone() == (2,)
    failing = False
    await until(lambda: locker.execute("select count(*) from outbox").fetchone() == (0,))
    locker.close()
    assert failures == []
    await outbox.close()


async def test_an_outbox_that_ends_by_a_fault_tells_it(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[BaseException] = []
    fault = RuntimeError("a fault of ours")

    async def publish_raw(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(bus, "publish_raw", publish_raw)
    outbox = Outbox(tmp_path / "outbox.sqlite", source="executor@n")
    await outbox.open()
    await outbox.put(DECISIONS, decision(1), node="n", gpu="g")
    outbox.drain_to(bus, on_failure=failures.append)
    await until(lambda: failures == [fault])
    await outbox.close()
