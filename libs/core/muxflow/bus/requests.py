"""Requests and their answers: any number outstanding, through one inbox."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from typing import Any

import msgspec
from nats.aio.msg import Msg

from muxflow.bus.connection import Connection, Interest
from muxflow.bus.errors import BusError, Disconnected, Forbidden, NoResponders, PayloadTooLarge, RequestTimeout

_LINE = len("NATS/1.0\r\n\r\n")


def unique() -> str:
    """Make a token that nobody else makes, a fork of this process included."""
    return secrets.token_hex(12)


class ApiError(BusError):
    """JetStream's answer to a request of its API that it refused."""

    def __init__(self, status: int, code: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.code = code


class ApiFailure(msgspec.Struct, frozen=True):
    """The ``error`` of an answer of JetStream."""

    code: int = 500
    err_code: int = 0
    description: str = ""


class Requests:
    """The inbox of one connection, and who waits for what in it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = f"{connection.settings.inbox_prefix}.{unique()}"
        self._numbers = itertools.count(1)
        self._waiting: dict[str, tuple[asyncio.Future[Msg], str]] = {}
        self._interest: Interest | None = None
        self._opening = asyncio.Lock()
        connection.on_state(self._state_changed)
        connection.on_violation(self._forbidden)

    @property
    def outstanding(self) -> int:
        return len(self._waiting)

    async def open(self) -> None:
        """Subscribe to the inbox."""
        if self._interest is None:
            self._interest = await self._connection.subscribe(f"{self._inbox}.*", self._answered)

    async def ask(self, subject: str, data: bytes, *, timeout_s: float, headers: dict[str, str] | None = None) -> Msg:
        """Send one request and wait for its answer.

        Raises `RequestTimeout`, `Disconnected`, `NoResponders`, `Forbidden`, `PayloadTooLarge`.
        """
        check_size(self._connection, subject, data, headers)
        token = str(next(self._numbers))
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = (answer, subject)
        try:
            await self._connection.send(subject, data, reply=f"{self._inbox}.{token}", headers=headers)
            async with asyncio.timeout(timeout_s):
                msg = await answer
        except TimeoutError:
            raise RequestTimeout(f"no answer on {subject} within {timeout_s:g} s") from None
        finally:
            del self._waiting[token]
        if not msg.data and msg.headers and msg.headers.get("Status") == "503":
            raise NoResponders(f"nobody answers on {subject}")
        return msg

    async def api(self, subject: str, request: Any = None, *, timeout_s: float) -> dict[str, Any]:
        """Ask JetStream's API. Raises what `ask` raises, and `ApiError`."""
        data = b"" if request is None else msgspec.json.encode(request)
        msg = await self.ask(f"$JS.API.{subject}", data, timeout_s=timeout_s)
        answer: dict[str, Any] = msgspec.json.decode(msg.data)
        if "error" in answer:
            failure = msgspec.convert(answer["error"], ApiFailure)
            raise ApiError(failure.code, failure.err_code, failure.description)
        return answer

    async def _answered(self, msg: Msg) -> None:
        waiting = self._waiting.get(msg.subject.rpartition(".")[2])
        if waiting is not None and not waiting[0].done():
            waiting[0].set_result(msg)

    def _state_changed(self, connected: bool) -> None:
        if connected:
            return
        for answer, _ in self._waiting.values():
            if not answer.done():
                answer.set_exception(Disconnected("the connection was lost before the answer"))

    def _forbidden(self, kind: str, lowered: str) -> None:
        if kind != "publish":
            return
        for answer, subject in self._waiting.values():
            if subject.lower() == lowered and not answer.done():
                answer.set_exception(Forbidden(0, f"these credentials may not publish on {subject}"))


def check_size(connection: Connection, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
    """Refuse what the server would answer by closing the connection."""
    size = len(data)
    if headers:
        size += _LINE + sum(len(key) + len(value) + 4 for key, value in headers.items())
    if size > connection.max_payload:
        raise PayloadTooLarge(
            10054, f"{size} bytes on {subject}: the server takes {connection.max_payload} in one message"
        )
