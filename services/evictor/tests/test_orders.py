"""Orders beside a disk that is slow."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from evicting_node import GPU, JOB, NODE, ScriptedExecutor
from muxflow.contracts.devices import EvictionAlert, GpuSample
from muxflow_device.eviction import EvictOrder
from muxflow_device.rundir import RunDirectory
from muxflow_evictor.ledger import Eviction, Ledger
from muxflow_evictor.orders import Orders


class SlowLedger(Ledger):
    """On a disk that takes nothing until it is let."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.may_enter = threading.Event()

    def enter(self, eviction: Eviction) -> None:
        assert self.may_enter.wait(20)
        super().enter(eviction)


@pytest.fixture
async def executor() -> AsyncIterator[ScriptedExecutor]:
    with tempfile.TemporaryDirectory(prefix="mux-", dir="/dev/shm") as path:
        Path(path).chmod(0o711)
        run = RunDirectory(Path(path))
        run.prepare()
        executor = ScriptedExecutor(run)
        await executor.listen()
        yield executor
        await executor.hang_up()


async def test_an_eviction_that_is_over_before_the_disk_took_it_is_not_under_way_for_ever(
    executor: ScriptedExecutor, tmp_path: Path
) -> None:
    told: list[EvictionAlert] = []
    tasks: list[asyncio.Task[None]] = []

    async def tell(alert: EvictionAlert) -> None:
        told.append(alert)

    async def readings_after(_gpu: str, _boottime_ns: int) -> GpuSample | None:
        return None

    def spawn(work: object) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work))  # type: ignore[arg-type]  # a coroutine
        return tasks[-1]

    ledger = SlowLedger(tmp_path / "under_way")
    orders = Orders(
        node=NODE,
        socket=executor.socket,
        ledger=ledger,
        tell=tell,
        readings_after=readings_after,
        spawn=spawn,
        on_over=lambda _total_ms: None,
    )
    await orders.resume()
    executor.start_job()
    order = EvictOrder(gpu=GPU, cause="hot", decided_ns=time.time_ns())
    async with asyncio.timeout(20):
        assert await orders.carry_out(order, before=None, here=[JOB])
    assert orders.under_way == 0
    assert [alert.total_ms is None for alert in told] == [True]
    ledger.may_enter.set()
    async with asyncio.timeout(20):
        await asyncio.gather(*tasks)
    assert [alert.total_ms is None for alert in told] == [True, False]
    assert list((tmp_path / "under_way").iterdir()) == []
