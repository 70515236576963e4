"""One connection to the servers that is never given up.

nats-py can reconnect by itself, but not from everything: some server errors close its client for good, and a peer that
vanished without a word leaves it waiting for a socket to drain. So a client is used for exactly one connection here.
When that ends, for whatever reason, it is dropped and a new one takes over all subscriptions.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as ClientSubscription

from muxflow.bus.errors import Disconnected, Forbidden
from muxflow.bus.settings import BusSettings
from muxflow.bus.tasks import end

log = structlog.get_logger("muxflow.bus")

MessageCallback = Callable[[Msg], Awaitable[None]]
_NEVER_S: Final = 10**9
_LOOK_S: Final = 0.25
"""How often the client is asked whether it is still connected: it does not always tell."""
_CLOSE_S: Final = 2.0


class _Client(Client):
    """nats-py's client, whose reader outlives an answer that nobody waits for any more."""

    async def _process_pong(self) -> None:
        # A cancelled or late flush leaves its future in the line, since its PONG still comes. nats-py sets the result
        # of a future that is done, takes the error for a broken connection, and ends its reader while it goes on to
        # call itself connected.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    @property
    def reads(self) -> bool:
        """Whether its reader still runs; without it nothing is received, and nothing says so."""
        return self._reading_task is not None and not self._reading_task.done()


class Interest:
    """A subscription that outlives connections."""

    def __init__(self, connection: Connection, subject: str, queue: str, callback: MessageCallback) -> None:
        self.subject = subject
        self.queue = queue
        self.callback = callback
        self.refused = False
        """The server has said that these credentials do not allow it."""
        self._connection = connection
        self._now: ClientSubscription | None = None

    async def bind(self, client: Client) -> None:
        """Subscribe on a new client."""
        self._now = await client.subscribe(
            self.subject, queue=self.queue, cb=self.callback, pending_msgs_limit=0, pending_bytes_limit=0
        )

    @property
    def queued(self) -> int:
        """Messages that have arrived and wait for the callback."""
        return self._now.pending_msgs if self._now else 0

    async def stop(self, *, drain: bool = False) -> None:
        """Unsubscribe. With `drain`, what has already arrived is still handled."""
        self._connection.interests.discard(self)
        now, self._now = self._now, None
        if now is None or not self._connection.connected:
            return
        ending = now.drain() if drain else now.unsubscribe()  # type: ignore[no-untyped-call]
        await self._connection.unless_lost(ending)


class Connection:
    """Connects, notices loss, connects again, until closed."""

    def __init__(self, settings: BusSettings, *, name: str) -> None:
        self.settings = settings
        self.name = name
        self.interests: set[Interest] = set()
        self.max_payload = 1 << 20
        self._client: Client | None = None
        self._servers = itertools.cycle(settings.servers)
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._ended = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._on_state: list[Callable[[bool], object]] = []
        self._on_violation: list[Callable[[str, str], object]] = []
        self._complaint = ""
        self._told_stranger = False
        self._violations: dict[str, float] = {}

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> Client:
        """The live client; `Disconnected` if there is none."""
        if self._client is None or not self._client.is_connected:
            raise Disconnected("not connected")
        return self._client

    def on_state(self, callback: Callable[[bool], object]) -> Callable[[], None]:
        """Call back with True after each connect (subscriptions are in place) and False after each loss."""
        self._on_state.append(callback)
        return lambda: self._on_state.remove(callback)

    def on_violation(self, callback: Callable[[str, str], object]) -> Callable[[], None]:
        """Call back with ``publish`` or ``subscription`` and the subject, in lower case, that was forbidden.

        Returns how to stop that.
        """
        self._on_violation.append(callback)
        return lambda: self._on_violation.remove(callback)

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise(), name="bus-connection")

    async def wait_connected(self) -> None:
        """Wait until there is a connection; `Disconnected` once closed."""
        while not self.connected:
            if self._ended.is_set():
                raise Disconnected("the bus is closed")
            await self._connected.wait()
            if not self.connected:
                await asyncio.sleep(0.01)  # lost, but the supervisor has not looked yet

    async def usable(self) -> bool:
        """Wait until there is a connection; False once closed."""
        try:
            await self.wait_connected()
        except Disconnected:
            return False
        return True

    async def subscribe(self, subject: str, callback: MessageCallback, *, queue: str = "") -> Interest:
        """Receive messages, over all connections to come."""
        interest = Interest(self, subject, queue, callback)
        self.interests.add(interest)
        if self.connected:
            client = self.client
            try:
                await interest.bind(client)
            except Exception:
                if self._client is client and self.connected:
                    raise
                log.debug("the connection was lost while subscribing", subject=subject)  # the next one subscribes
        return interest

    async def subscribe_confirmed(self, subject: str, callback: MessageCallback) -> Interest:
        """Subscribe, and hear whether it is allowed, if there is a connection now. Raises `Forbidden`."""
        interest = await self.subscribe(subject, callback)
        with contextlib.suppress(Disconnected):
            for _ in range(2):  # the client's first PING overtakes what it has not written yet
                await self.unless_lost(self.client.flush())
        if interest.refused:
            await interest.stop()
            raise Forbidden(0, f"these credentials may not subscribe to {subject}")
        return interest

    async def unless_lost(self, exchange: Coroutine[Any, Any, object]) -> None:
        """Wait for an exchange with the server, but no longer than the connection lasts; its errors do not matter.

        When the waiting is cancelled, the exchange goes on: nats-py takes an answer to a cancelled PING for a broken
        connection.
        """

        async def run() -> None:
            with contextlib.suppress(Exception):
                await exchange

        work, lost = asyncio.ensure_future(run()), asyncio.ensure_future(self._lost.wait())
        self._background.add(work)
        work.add_done_callback(self._background.discard)
        try:
            await asyncio.wait((work, lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
            if self._lost.is_set():
                work.cancel()

    async def send(self, subject: str, data: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Send without waiting for anything; `Disconnected` if there is no connection."""
        try:
            await self.client.publish(subject, data, reply, headers)
        except (OSError, RuntimeError) as error:
            raise Disconnected(str(error)) from error

    async def close(self) -> None:
        """Let what arrived be handled, flush, and end."""
        self._ended.set()
        self._connected.set()
        await end(self._supervisor)
        client, self._client = self._client, None
        if client is not None and client.is_connected:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.drain(), _CLOSE_S)
        if client is not None:
            await _drop(client)
        for task in tuple(self._background):
            task.cancel()

    async def _supervise(self) -> None:
        while True:
            client = await self._connect()
            self._client = client
            self.max_payload = client.max_payload
            with contextlib.suppress(Exception):  # lost again already: watching it tells
                for interest in tuple(self.interests):
                    await interest.bind(client)
            self._connected.set()
            self._tell(connected=True)
            reason = await self._watch(client)
            self._client = None
            self._connected.clear()
            self._complain(f"the connection was lost: {reason}")
            self._tell(connected=False)
            self._spawn(_drop(client))

    async def _connect(self) -> _Client:
        """Try one server after the other; one line of warning for each new reason."""
        wait_s = self.settings.reconnect_wait_s
        began = time.monotonic()
        while True:
            server = next(self._servers)
            client = _Client()
            self._lost = asyncio.Event()
            failures: list[Exception] = []
            try:
                await self._open(client, server, failures, self._lost)
            except Exception as error:  # noqa: BLE001 - nothing that a server or a file does may end us
                await _drop(client)
                self._complain(f"{server}: {_reason([*failures, error])}")
            except BaseException:
                await _drop(client)
                raise
            else:
                if self._complaint:
                    log.info("connected", server=server, after_s=round(time.monotonic() - began, 3))
                self._complaint = ""
                return client
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, self.settings.reconnect_wait_max_s)

    async def _open(self, client: Client, server: str, failures: list[Exception], lost: asyncio.Event) -> None:
        async def on_error(error: Exception) -> None:
            failures.append(error)
            del failures[:-4]
            self._on_error(error)

        async def on_end() -> None:
            lost.set()

        settings = self.settings
        async with asyncio.timeout(3 * settings.connect_timeout_s):
            await client.connect(
                [server],
                name=self.name,
                error_cb=on_error,
                disconnected_cb=on_end,
                closed_cb=on_end,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=settings.connect_timeout_s,  # type: ignore[arg-type]  # floats do
                ping_interval=_NEVER_S,
                nkeys_seed=settings.credentials,
                inbox_prefix=settings.inbox_prefix,
                tls=_tls(settings),
                pending_size=8 << 20,
            )

    async def _watch(self, client: _Client) -> str:
        """Return, with the reason, when the connection is lost or has been silent for too long."""
        settings = self.settings
        received = -1
        checked = time.monotonic()
        while client.is_connected:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._lost.wait()
            if not client.reads and not self._lost.is_set():
                return "the client reads no more"
            if self._lost.is_set() or time.monotonic() - checked < settings.ping_interval_s:
                continue
            checked = time.monotonic()
            before, received = received, client.stats["in_msgs"]
            if before != received:
                continue
            try:
                await client.flush(settings.ping_timeout_s)  # type: ignore[arg-type]  # floats do
            except Exception:  # noqa: BLE001 - whatever it is, the server did not answer
                if client.stats["in_msgs"] == received:
                    return f"no answer for {settings.ping_timeout_s} s"
        return _reason([client.last_error] if client.last_error else [])

    def _on_error(self, error: Exception) -> None:
        text = str(error)
        _, found, rest = text.partition("permissions violation for ")
        if not found:
            log.debug("client error", error=text)
            return
        kind = rest.split(" ", 1)[0]
        subject = rest.split('"')[1] if '"' in rest else rest
        now = time.monotonic()
        if now - self._violations.get(rest, -_NEVER_S) > 30:
            self._violations[rest] = now
            log.error("forbidden", what=kind, subject=subject)
        if kind == "subscription":
            for interest in self.interests:
                interest.refused |= interest.subject.lower() == subject
        for callback in tuple(self._on_violation):
            callback(kind, subject)

    def _complain(self, reason: str) -> None:
        """Warn once in each outage, and once more if the server does not know us."""
        stranger = "authorization" in reason.lower()
        if not self._complaint or (stranger and not self._told_stranger):
            log.warning("no connection to the bus, trying again", reason=reason)
        self._told_stranger = stranger or (self._told_stranger and bool(self._complaint))
        self._complaint = reason

    def _tell(self, *, connected: bool) -> None:
        for callback in tuple(self._on_state):
            try:
                result = callback(connected)
                if inspect.isawaitable(result):
                    self._spawn(result)
            except Exception:
                log.exception("a state callback failed")

    def _spawn(self, work: Awaitable[Any]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception:
                log.exception("a background task of the connection failed")

        task = asyncio.get_running_loop().create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _tls(settings: BusSettings) -> ssl.SSLContext | None:
    if not (settings.tls_ca or settings.tls_cert):
        return None
    context = ssl.create_default_context(cafile=settings.tls_ca)
    if settings.tls_cert:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context


def _reason(errors: list[Exception]) -> str:
    """Find the error that says most: nats-py ends with one that says nothing."""
    for error in errors:
        text = str(error).strip().rstrip("'").removeprefix("nats: ").lstrip("'")
        if isinstance(error, FileNotFoundError):
            return f"{Path(error.filename).name}: no such file"
        if text and "no servers" not in text:
            return text
    return "the connection was closed" if not errors else type(errors[0]).__name__


async def _drop(client: Client) -> None:
    """End a client without trusting its socket to drain."""
    with contextlib.suppress(Exception):
        await asyncio.wait_for(client.close(), _CLOSE_S)
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        with contextlib.suppress(Exception):
            writer.transport.abort()
