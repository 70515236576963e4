"""Publishing to JetStream: acked, in a bounded window, tried again under one identity."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

import msgspec
import structlog

from muxflow.bus.batches import Lane, Outgoing, PublishAck
from muxflow.bus.connection import Connection
from muxflow.bus.errors import (
    Disconnected,
    Forbidden,
    NoResponders,
    PayloadTooLarge,
    PublishRefused,
    PublishTimeout,
    RequestTimeout,
    StreamFull,
    WrongLastSequence,
)
from muxflow.bus.requests import ApiFailure, Requests

log = structlog.get_logger("muxflow.bus")

MESSAGE_ID: Final = "Nats-Msg-Id"
EXPECTED_LAST: Final = "Nats-Expected-Last-Subject-Sequence"

_WRONG_LAST: Final = frozenset({10070, 10071, 10164})
_TOO_LARGE: Final = frozenset({10054, 10097})
_STORE_FAILED: Final = 10077
_REPEAT_WAIT_MAX_S: Final = 2.0


class _Answer(msgspec.Struct, frozen=True):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiFailure | None = None


_ANSWER: Final = msgspec.json.Decoder(_Answer)


class Publisher:
    """One window of outstanding publishes."""

    def __init__(self, connection: Connection, requests: Requests) -> None:
        self._connection = connection
        self._requests = requests
        self._window = asyncio.Semaphore(connection.settings.max_outstanding)
        self._lanes: dict[str, Lane] = {}
        self._complained_at = 0.0

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str,
        stream: str | None = None,
        headers: dict[str, str] | None = None,
        expect_last: int | None = None,
        deadline_s: float | None = None,
        try_s: float | None = None,
        urgent: bool = False,
    ) -> PublishAck:
        """Store one message.

        Tries until acked or refused, or until `deadline_s` has passed, each try at most `try_s` long. A try whose ack
        was lost does no harm: a message that is stored already is found by `message_id`. `stream`, if it is known, lets
        many messages travel together. An `urgent` one, such as a lease, waits for no other message.

        Raises `PublishTimeout` and `PublishRefused`.
        """
        headers = {**(headers or {}), MESSAGE_ID: message_id}
        if expect_last is not None:
            headers[EXPECTED_LAST] = str(expect_last)
        message = Outgoing(subject, data, headers)
        window = contextlib.nullcontext() if urgent else self._window
        try:
            async with asyncio.timeout(deadline_s), window:
                if stream is None or urgent:
                    return await self._until_acked(message, stream, try_s or self._try_s, maybe_stored=False)
                return await self._lane(stream).publish(message)
        except TimeoutError:
            raise PublishTimeout(f"no ack for {subject} within {deadline_s} s") from None

    @property
    def _try_s(self) -> float:
        return self._connection.settings.publish_timeout_s

    def _lane(self, stream: str) -> Lane:
        if stream not in self._lanes:

            async def alone(message: Outgoing, maybe_stored: bool) -> PublishAck:
                return await self._until_acked(message, stream, self._try_s, maybe_stored=maybe_stored)

            self._lanes[stream] = Lane(self._connection, self._requests, alone, try_s=self._try_s)
        return self._lanes[stream]

    async def _until_acked(
        self, message: Outgoing, stream: str | None, try_s: float, *, maybe_stored: bool
    ) -> PublishAck:
        wait_s = 0.05
        while True:
            await self._connection.wait_connected()
            try:
                msg = await self._requests.ask(message.subject, message.data, headers=message.headers, timeout_s=try_s)
                answer = _ANSWER.decode(msg.data)
            except Disconnected:
                maybe_stored = True
                continue
            except (RequestTimeout, NoResponders, msgspec.DecodeError) as error:
                problem = str(error)
            else:
                if answer.error is None:
                    return PublishAck(answer.stream, answer.seq, answer.duplicate)
                if maybe_stored and answer.error.err_code in _WRONG_LAST and stream is not None:
                    ours = await self._find(stream, message)
                    if ours is not None:
                        return ours
                problem = _refused_or_problem(message.subject, answer.error)
            maybe_stored = True
            self._complain(message.subject, problem)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _REPEAT_WAIT_MAX_S)

    async def _find(self, stream: str, message: Outgoing) -> PublishAck | None:
        """Look whether the newest message on the subject is this very one, stored by a try whose ack was lost.

        The server checks the expected sequence before it looks for duplicates (nats-server 2.15), so a repeated
        compare-and-swap that had succeeded comes back as a conflict.
        """
        while True:
            try:
                newest = await self._requests.ask(
                    f"$JS.API.DIRECT.GET.{stream}.{message.subject}", b"", timeout_s=self._try_s
                )
            except Disconnected:
                await self._connection.wait_connected()
                continue
            except RequestTimeout:
                continue
            except (Forbidden, NoResponders):
                return None
            headers = newest.headers or {}
            if headers.get(MESSAGE_ID) != message.headers[MESSAGE_ID]:
                return None
            return PublishAck(stream, int(headers["Nats-Sequence"]), duplicate=True)

    def _complain(self, subject: str, problem: str) -> None:
        """Warn at most every ten seconds: a server in trouble refuses everything."""
        if time.monotonic() - self._complained_at > 10:
            self._complained_at = time.monotonic()
            log.warning("publish not acked, trying again", subject=subject, reason=problem)


def _refused_or_problem(subject: str, error: ApiFailure) -> str:
    """Raise if trying again cannot help; else say what the trouble is."""
    code, text = error.err_code, error.description
    if code in _WRONG_LAST:
        raise WrongLastSequence(code, f"{subject}: {text}")
    if code in _TOO_LARGE:
        raise PayloadTooLarge(code, f"{subject}: {text}")
    if code == _STORE_FAILED and text.startswith("maximum "):
        raise StreamFull(code, f"{subject}: {text}")
    if error.code >= 500 or code == _STORE_FAILED:
        return f"{text} ({code})"
    raise PublishRefused(code, f"{subject}: {text}")
