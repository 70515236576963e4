"""Publishing to JetStream: acked, in a bounded window, tried again under one identity."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec
import structlog

from muxflow.bus.connection import Connection
from muxflow.bus.errors import (
    Disconnected,
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


class PublishAck(msgspec.Struct, frozen=True, kw_only=True):
    """The server has stored the message."""

    stream: str
    sequence: int
    duplicate: bool = False
    """True when a message of this identity had been stored before: `sequence` is then that one's."""


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
        self._complained_at = 0.0

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        message_id: str,
        headers: dict[str, str] | None = None,
        expect_last: int | None = None,
        deadline_s: float | None = None,
        try_s: float | None = None,
    ) -> PublishAck:
        """Store one message.

        Tries until acked or refused, or until `deadline_s` has passed, each try at most `try_s` long. A try whose ack
        was lost does no harm: the server knows `message_id` and acks it again.

        Raises `PublishTimeout` and `PublishRefused`.
        """
        headers = {**(headers or {}), MESSAGE_ID: message_id}
        if expect_last is not None:
            headers[EXPECTED_LAST] = str(expect_last)
        try:
            async with asyncio.timeout(deadline_s), self._window:
                return await self._until_acked(
                    subject, data, headers, try_s or self._connection.settings.publish_timeout_s
                )
        except TimeoutError:
            raise PublishTimeout(f"no ack for {subject} within {deadline_s} s") from None

    async def _until_acked(self, subject: str, data: bytes, headers: dict[str, str], try_s: float) -> PublishAck:
        wait_s = 0.05
        while True:
            await self._connection.wait_connected()
            try:
                msg = await self._requests.ask(subject, data, headers=headers, timeout_s=try_s)
                answer = _ANSWER.decode(msg.data)
            except Disconnected:
                continue
            except (RequestTimeout, NoResponders, msgspec.DecodeError) as error:
                problem = str(error)
            else:
                if answer.error is None:
                    return PublishAck(stream=answer.stream, sequence=answer.seq, duplicate=answer.duplicate)
                problem = _refused_or_problem(subject, answer.error)
            self._complain(subject, problem)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _REPEAT_WAIT_MAX_S)

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
