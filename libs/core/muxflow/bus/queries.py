"""Questions and answers over core NATS, discoverable as a NATS micro service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
import structlog
from nats.aio.client import Client
from nats.micro import add_service
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER, Request
from nats.micro.service import Service, ServiceConfig

from muxflow.bus.connection import Connection
from muxflow.bus.errors import Disconnected, QueryError
from muxflow.bus.message import Message, RawMessage
from muxflow.bus.requests import Requests
from muxflow.contracts import Event, Subject, decode, encode

log = structlog.get_logger("muxflow.bus")

QueryHandler = Callable[[Message[Any]], Awaitable[Event]]
"""Answers one question; may raise `QueryError`."""

_AT_ONCE: Final = 64


async def ask(
    requests: Requests, subject: Subject, event: Event, *, timeout_s: float, names: Mapping[str, str]
) -> Event:
    """Ask and wait. Raises `QueryError`, `NoResponders`, `RequestTimeout`, `Disconnected`, `Forbidden`."""
    if subject.reply is None:
        raise ValueError(f"{subject.name} is no question")
    msg = await requests.ask(subject.of(**names), encode(event), timeout_s=timeout_s)
    headers = msg.headers or {}
    if ERROR_CODE_HEADER in headers:
        code = headers[ERROR_CODE_HEADER]
        raise QueryError(int(code) if code.isdigit() else 500, headers.get(ERROR_HEADER, "no reason given"))
    return decode(msg.data, subject.reply)


class Responder:
    """Answers questions on a few subjects until stopped, over all connections to come."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        version: str,
        endpoints: Mapping[Subject, QueryHandler],
        *,
        bindings: Mapping[str, str],
        completed: Callable[[Event], Event],
    ) -> None:
        self.stopped = False
        self._connection = connection
        self._completed = completed
        self._config = ServiceConfig(name=name, version=version)
        self._endpoints = endpoints
        self._bindings = bindings
        self._service: Service | None = None
        self._client: Client | None = None
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._answering: set[asyncio.Task[None]] = set()
        self._forget_state: Callable[[], None] | None = None

    async def start(self) -> None:
        self._forget_state = self._connection.on_state(self._state_changed)
        await self._register()

    async def stop(self) -> None:
        """Take no more questions, finish those that are being answered."""
        self.stopped = True
        if self._forget_state is not None:
            self._forget_state()
            self._forget_state = None
        if self._service is not None and self._connection.connected:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._service.stop(), 2)
        self._service = None
        while self._answering:
            await asyncio.wait(self._answering)

    async def _state_changed(self, connected: bool) -> None:
        if connected:
            await self._register()

    async def _register(self) -> None:
        """Register on the connection there is; when that is lost on the way, the next one brings us here again."""
        try:
            client = self._connection.client
        except Disconnected:
            return
        if client is self._client:
            return
        self._client = client
        try:
            self._service = await add_service(client, self._config)
            for subject, handler in self._endpoints.items():
                await self._service.add_endpoint(
                    name=subject.name.rpartition(".")[2],
                    subject=subject.pattern(**self._bindings),
                    handler=self._receiver(subject, handler),
                )
        except Exception as error:
            if client.is_connected:
                raise
            log.debug("the connection was lost while registering", service=self._config.name, reason=str(error))

    def _receiver(self, subject: Subject, handler: QueryHandler) -> Callable[[Request], Awaitable[None]]:
        async def receive(request: Request) -> None:
            await self._places.acquire()
            task = asyncio.get_running_loop().create_task(self._answer(subject, handler, request))
            self._answering.add(task)
            task.add_done_callback(self._answered)

        return receive

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        self._places.release()

    async def _answer(self, subject: Subject, handler: QueryHandler, request: Request) -> None:
        try:
            try:
                raw = RawMessage(subject, request.subject, request.data, request.headers, None)
                reply = await handler(Message(raw, raw.decode(subject.event)))
                await request.respond(encode(self._completed(reply)))
            except QueryError as error:
                await request.respond_error(str(error.code), error.text)
            except (msgspec.DecodeError, ValueError) as error:
                await request.respond_error("400", str(error))
            except Exception as error:
                log.exception("a question could not be answered", subject=request.subject)
                await request.respond_error("500", f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - the asker or the connection is gone
            log.debug("an answer could not be sent", subject=request.subject, reason=str(error))
