"""The executor's node-local socket: the evictor orders, the executor tells each step, and nothing needs the bus.

A connection carries one order. The asker writes one line of JSON, an `EvictOrder`; the executor answers in lines: an
`EvictStep` for each step of each attempt, past ones first, an `EvictDone` for each attempt of which nothing is left,
and `EvictEnd` when the order is carried out. An order that cannot be understood gets an `EvictRefused` and stops
nothing. Whoever sees the connection end without `EvictEnd` asks again: orders are idempotent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from muxflow.contracts import Attempt, ExitStatus
from muxflow.contracts.event import Count, Milliseconds, TimeNs

log = structlog.get_logger()

LINE_BYTES_MAX: Final = 1 << 20
"""Longest line either side reads."""

_ORDER_S: Final = 5.0
"""How long an asker may take to write its order."""

_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Text = Annotated[str, Meta(max_length=4096)]


class EvictOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Stop offline attempts on one GPU. What is as ever is left out: an executor that is older refuses a field that it
    does not know, and shall obey all the same while a node is upgraded.
    """

    gpu: _Name
    attempts: tuple[Attempt, ...] | None = None
    """These, if they were there when it was decided; null: every one that is on the GPU."""
    cause: _Text
    """Why, in words for people; becomes the reason of the attempts' `evicted` facts."""
    hard: bool = False
    """There is no time for a checkpoint, and nothing may trickle."""
    breach: bool = False
    """They have broken a rule: their jobs fail."""
    workload: _Text | None = None
    """The online workload that is protected, if one is known."""
    decided_ns: TimeNs
    """When it was decided, by the asker's clock. Attempts are not stopped for what was decided before they began."""


class EvictStep(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="step"):
    """An attempt's stop has come to a step."""

    attempt: Attempt
    step: str
    """As `muxflow_decisions.eviction` names it."""
    time_ns: TimeNs


class EvictDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="done"):
    """Nothing of the attempt is left."""

    attempt: Attempt
    exit: ExitStatus | None = None
    """How it ended; null when this node knows no such attempt (any more)."""
    total_ms: Milliseconds | None = None
    """From the decision to the last process gone; null when that is not known."""


class EvictEnd(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="end"):
    """The order is carried out: nothing more follows."""

    attempts: Count
    """How many attempts it was about."""


class EvictRefused(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="refused"):
    """The order could not be understood; it has changed nothing."""

    reason: str


EvictReply = EvictStep | EvictDone | EvictEnd
_Line: Final = EvictStep | EvictDone | EvictEnd | EvictRefused

CarryOut = Callable[[EvictOrder], AsyncGenerator[EvictReply | EvictRefused, None]]
"""Begins to obey at once, and gives each answer as it comes: `EvictEnd` last, or nothing but `EvictRefused`."""


class ExecutorAway(Exception):  # noqa: N818 - it reads as what the evictor tells
    """The executor does not answer, or ended before the order was carried out. The message says which."""


class OrderRefused(Exception):  # noqa: N818 - same reason
    """The executor does not understand the order: asking again does not help."""


async def evict(path: Path, order: EvictOrder, *, answer_s: float) -> AsyncGenerator[EvictReply, None]:
    """Give an order to the executor whose socket is at `path`; yields its answers up to `EvictEnd`.

    Raises `ExecutorAway` when nobody is there, when `answer_s` seconds pass without a first answer, or when the
    executor ends on the way; `OrderRefused`.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE_BYTES_MAX)
    except OSError as error:
        raise ExecutorAway(f"{path}: {error.strerror or error}") from None
    try:
        writer.write(_pack(order))
        async with asyncio.timeout(answer_s):
            await writer.drain()
            answer = await _answer(reader)
        while True:
            yield answer
            if isinstance(answer, EvictEnd):
                return
            answer = await _answer(reader)
    except TimeoutError:
        raise ExecutorAway(f"{path}: no answer in {answer_s:g} s") from None
    except OSError as error:
        raise ExecutorAway(f"{path}: {error.strerror or error}") from None
    finally:
        await _hang_up(writer)


async def _answer(reader: asyncio.StreamReader) -> EvictReply:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise ExecutorAway("the executor ended before the order was carried out")
    try:
        answer: EvictReply | EvictRefused = msgspec.json.decode(line, type=_Line)
    except msgspec.DecodeError as error:
        raise ExecutorAway(f"an answer that is none: {error}") from None
    if isinstance(answer, EvictRefused):
        raise OrderRefused(answer.reason)
    return answer


class EvictionServer:
    """The executor's end of the socket, of mode 0600. One that a killed executor has left behind is replaced."""

    def __init__(self, path: Path, carry_out: CarryOut) -> None:
        self._path = path
        self._carry_out = carry_out
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Begin to answer. Raises OSError, which names the path."""
        listener = _listen(self._path)
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=LINE_BYTES_MAX)

    async def close(self) -> None:
        """End all connections, and leave no socket behind."""
        if self._server is None:
            return
        self._server.close()
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        try:
            await self._converse(reader, writer)
        except ConnectionError:
            log.debug("the asker has gone")
        except asyncio.CancelledError:
            log.debug("the socket is closed while an order is carried out")
        finally:
            await _hang_up(writer)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_ORDER_S):
                order = msgspec.json.decode(await reader.readline(), type=EvictOrder)
        except TimeoutError:
            return
        except ValueError as error:  # msgspec's are ValueErrors too, and so is a line that is too long
            log.warning("order refused", reason=str(error))
            writer.write(_pack(EvictRefused(reason=str(error))))
            writer.write_eof()
            await _hear_out(reader)
            return
        async with contextlib.aclosing(self._carry_out(order)) as answers:
            async for answer in answers:
                writer.write(_pack(answer))
                await writer.drain()


async def _hear_out(reader: asyncio.StreamReader) -> None:
    """Take in what else is said: hanging up on it would take the refusal away from the asker."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_ORDER_S):
            while await reader.read(LINE_BYTES_MAX):
                pass


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _pack(line: msgspec.Struct) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _listen(path: Path) -> socket.socket:
    """Make the socket under another name, and give it its own in one step: who finds it may connect at once."""
    unfinished = path.with_name(f".{path.name}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        unfinished.unlink(missing_ok=True)
        listener.bind(str(unfinished))
        unfinished.chmod(0o600)
        listener.listen()
        unfinished.rename(path)
    except OSError as error:
        listener.close()
        raise OSError(error.errno or errno.EINVAL, f"{path}: {error.strerror or error}") from None
    return listener
