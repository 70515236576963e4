"""The node-local socket, between a client and a server in one process."""

from __future__ import annotations

import asyncio
import socket
import stat
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from muxflow.contracts import Attempt, ExitStatus
from muxflow_device.eviction import (
    EvictDone,
    EvictEnd,
    EvictionServer,
    EvictOrder,
    EvictReply,
    EvictStep,
    ExecutorAway,
    OrderRefused,
    evict,
)

ATTEMPT = Attempt(tenant="default", job="job", attempt=1)
ORDER = EvictOrder(gpu="GPU-1", cause="online activity 95%", workload="search", decided_ns=7)
ANSWERS: tuple[EvictReply, ...] = (
    EvictStep(attempt=ATTEMPT, step="freeze", time_ns=8),
    EvictDone(attempt=ATTEMPT, exit=ExitStatus(signal="SIGTERM"), total_ms=12.5),
    EvictEnd(attempts=1),
)


class Executor:
    """Answers every order alike, and remembers them."""

    def __init__(self) -> None:
        self.orders: list[EvictOrder] = []
        self.before_the_last = asyncio.Event()
        self.before_the_last.set()

    async def carry_out(self, order: EvictOrder) -> AsyncGenerator[EvictReply, None]:
        self.orders.append(order)
        for answer in ANSWERS[:-1]:
            yield answer
        await self.before_the_last.wait()
        yield ANSWERS[-1]


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mux-") as directory:  # short: a socket's path has 107 bytes
        yield Path(directory) / "executor.sock"


@pytest.fixture
def executor() -> Executor:
    return Executor()


@pytest.fixture
async def server(path: Path, executor: Executor) -> AsyncIterator[EvictionServer]:
    server = EvictionServer(path, executor.carry_out)
    await server.open()
    yield server
    await server.close()


async def ask(path: Path, order: EvictOrder = ORDER) -> list[EvictReply]:
    return [answer async for answer in evict(path, order, answer_s=5)]


async def say(path: Path, line: bytes) -> bytes:
    """Write something, and read all that comes back."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    writer.write_eof()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.usefixtures("server")
async def test_every_answer_to_an_order_arrives_in_order(path: Path, executor: Executor) -> None:
    assert await ask(path) == list(ANSWERS)
    assert executor.orders == [ORDER]


@pytest.mark.usefixtures("server")
async def test_orders_are_carried_out_beside_each_other(path: Path, executor: Executor) -> None:
    executor.before_the_last.clear()
    asking = [asyncio.create_task(ask(path)) for _ in range(3)]
    async with asyncio.timeout(10):
        while len(executor.orders) < 3:
            await asyncio.sleep(0.005)
    executor.before_the_last.set()
    assert await asyncio.gather(*asking) == [list(ANSWERS)] * 3


@pytest.mark.usefixtures("server")
async def test_only_the_owner_may_connect(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b"evict everything\n", "malformed"),
        (b'{"gpu": "GPU-1"}\n', "cause"),
        (b'{"gpu": "GPU-1", "cause": "", "decided_ns": 0, "herd": true}\n', "herd"),
        (b'{"gpu": "", "cause": "", "decided_ns": 0}\n', "gpu"),
        (b"\xff\xfe\n", "malformed"),
        (b"", "truncated"),
        (b"x" * (2 << 20) + b"\n", "limit"),
    ],
)
async def test_what_is_no_order_gets_a_line_that_says_why_and_stops_nothing(
    path: Path, executor: Executor, line: bytes, named: str
) -> None:
    answer = msgspec.json.decode(await say(path, line))
    assert answer["type"] == "refused"
    assert named in answer["reason"]
    assert executor.orders == []
    assert await ask(path) == list(ANSWERS)


async def test_refusal_reaches_the_asker_as_an_error(path: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"type": "refused", "reason": "no such thing"}\n')
        writer.close()

    async with await asyncio.start_unix_server(refuse, path):
        with pytest.raises(OrderRefused, match="no such thing"):
            await ask(path)


async def test_nobody_there_is_an_error_that_names_the_path(path: Path) -> None:
    with pytest.raises(ExecutorAway, match=r"executor\.sock: No such file"):
        await ask(path)


async def test_executor_that_ends_on_the_way_is_told_apart_from_an_order_carried_out(
    path: Path, executor: Executor
) -> None:
    server = EvictionServer(path, executor.carry_out)
    await server.open()
    executor.before_the_last.clear()
    answers = evict(path, ORDER, answer_s=5)
    assert [await anext(answers) for _ in ANSWERS[:-1]] == list(ANSWERS[:-1])
    await server.close()
    with pytest.raises(ExecutorAway, match="ended before"):
        await anext(answers)
    assert not path.exists()


async def test_executor_that_does_not_answer_counts_as_away(path: Path) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(hang, path):
        with pytest.raises(ExecutorAway, match=r"no answer in 0\.05 s"):
            [answer async for answer in evict(path, ORDER, answer_s=0.05)]


async def test_socket_of_a_killed_executor_is_replaced(path: Path, executor: Executor) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with pytest.raises(ExecutorAway, match="refused"):
        await ask(path)
    again = EvictionServer(path, executor.carry_out)
    await again.open()
    assert await ask(path) == list(ANSWERS)
    await again.close()


async def test_path_that_is_too_long_is_an_error_that_names_it(tmp_path: Path, executor: Executor) -> None:
    path = tmp_path / ("x" * 120) / "executor.sock"
    path.parent.mkdir()
    with pytest.raises(OSError, match="x" * 120):
        await EvictionServer(path, executor.carry_out).open()


async def test_asker_that_leaves_disturbs_nobody(path: Path, executor: Executor, server: EvictionServer) -> None:
    executor.before_the_last.clear()
    async with aclosing(evict(path, ORDER, answer_s=5)) as answers:
        assert await anext(answers) == ANSWERS[0]
    executor.before_the_last.set()
    assert await ask(path) == list(ANSWERS)
    await server.close()
