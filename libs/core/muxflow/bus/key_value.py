"""Key-value buckets, written by compare-and-swap in the same window as publishes. Compatible with ``nats kv``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

import msgspec
from nats.aio.msg import Msg

from muxflow.bus.connection import Connection
from muxflow.bus.errors import Disconnected, KeyExists, NoResponders, RequestTimeout, WrongLastSequence
from muxflow.bus.message import Delivery
from muxflow.bus.publishing import MESSAGE_ID, Publisher
from muxflow.bus.reader import FromSequence, OrderedReader, Reader
from muxflow.bus.requests import Requests, unique
from muxflow.contracts import Bucket, encode, encode_token

V = TypeVar("V", bound=msgspec.Struct)

_OPERATION: Final = "KV-Operation"
_GONE: Final = frozenset({"DEL", "PURGE"})
_REMOVED_BY_SERVER: Final = "Nats-Marker-Reason"


class Entry(msgspec.Struct, Generic[V], frozen=True, kw_only=True):
    """A key and its value at a revision."""

    key: str
    value: V
    revision: int
    time_ns: int
    """When the server stored it."""


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """A key that has been deleted. Keys that end by the bucket's TTL go without a word."""

    key: str
    revision: int
    time_ns: int


Watcher = Callable[[Entry[Any] | Removal], Awaitable[None] | None]
OnInvalid = Callable[[str, msgspec.DecodeError], object]
"""Is given the key of an entry that cannot be decoded, and why."""


class KeyValue(Generic[V]):
    """One bucket. Its values have one type, its keys are made by `key`."""

    def __init__(self, bucket: Bucket, connection: Connection, requests: Requests, publisher: Publisher) -> None:
        self.bucket = bucket
        self._connection = connection
        self._requests = requests
        self._publisher = publisher
        self._prefix = f"$KV.{bucket.name}."
        self._stream = f"KV_{bucket.name}"
        self._all_keys = re.sub(r"\{\w+\}", "*", bucket.key)  # what permissions bind readers to
        self._writer = unique()
        self._decoder: msgspec.json.Decoder[V] = msgspec.json.Decoder(bucket.value)

    def key(self, **names: str) -> str:
        """Make a key: ``jobs.key(tenant="default", job="x")``."""
        return self.bucket.key.format_map({name: encode_token(value) for name, value in names.items()})

    async def get(self, key: str) -> Entry[V] | None:
        """Read the newest value; None if there is none.

        Raises `msgspec.DecodeError`, `Forbidden`, `Disconnected`, `RequestTimeout`, `NoResponders`.
        """
        found = await self._get(key)
        return found if isinstance(found, Entry) else None

    async def create(self, key: str, value: V, *, deadline_s: float | None = None, try_s: float | None = None) -> int:
        """Write a key that is not there; returns its revision. Raises `KeyExists`, `PublishRefused`."""
        try:
            return await self._put(key, encode(value), 0, deadline_s=deadline_s, try_s=try_s)
        except WrongLastSequence:
            try:
                found = await self._get_when_possible(key)
            except msgspec.DecodeError as error:
                raise KeyExists(f"{self.bucket.name}/{key} is there, and damaged: {error}") from None
            if isinstance(found, Entry):
                raise KeyExists(f"{self.bucket.name}/{key} is there, revision {found.revision}") from None
        try:
            last = found.revision if found is not None else 0
            return await self._put(key, encode(value), last, deadline_s=deadline_s, try_s=try_s)
        except WrongLastSequence:
            raise KeyExists(f"{self.bucket.name}/{key} was just made by somebody else") from None

    async def update(
        self, key: str, value: V, *, last: int, deadline_s: float | None = None, try_s: float | None = None
    ) -> int:
        """Write if `last` still is the key's revision; returns the new one. Raises `WrongLastSequence`."""
        return await self._put(key, encode(value), last, deadline_s=deadline_s, try_s=try_s)

    async def delete(self, key: str, *, last: int | None = None, deadline_s: float | None = None) -> int:
        """Delete, if `last` (when given) still is the key's revision; returns the revision of the deletion."""
        return await self._put(key, b"", last, headers={_OPERATION: "DEL"}, deadline_s=deadline_s)

    async def entries(self, *, on_invalid: OnInvalid | None = None) -> list[Entry[V]]:
        """Read all entries as of one point in time.

        Those that cannot be decoded are given to `on_invalid`; without it the first raises `msgspec.DecodeError`.
        """
        found: dict[str, Entry[V]] = {}
        failed: dict[str, msgspec.DecodeError] = {}

        def collect(entry: Entry[V] | Removal) -> None:
            failed.pop(entry.key, None)
            if isinstance(entry, Entry):
                found[entry.key] = entry
            else:
                found.pop(entry.key, None)

        def note(key: str, error: msgspec.DecodeError) -> None:
            found.pop(key, None)
            failed[key] = error

        reader = self.watch(collect, on_invalid=note)
        try:
            await reader.caught_up()
        finally:
            await reader.stop()
        for key, error in failed.items():
            if on_invalid is None:
                raise error
            on_invalid(key, error)
        return list(found.values())

    def watch(
        self,
        handler: Watcher,
        *,
        keys: str | None = None,
        on_invalid: OnInvalid | None = None,
    ) -> Reader:
        """Call back with every entry there is, then with every change. Stop it when done.

        `keys` is one key, or a pattern of keys; None means all.
        """

        def deliver(msg: Msg, delivery: Delivery) -> Awaitable[None] | None:
            key = msg.subject.removeprefix(self._prefix)
            try:
                entry = self._entry(
                    key, msg.data, msg.headers, revision=delivery.stream_sequence, time_ns=delivery.time_ns
                )
            except msgspec.DecodeError as error:
                if on_invalid is None:
                    raise
                on_invalid(key, error)
                return None
            result = handler(entry)
            return result if inspect.isawaitable(result) else None

        part = OrderedReader(
            self._connection,
            self._requests,
            stream=self._stream,
            pattern=self._prefix + (keys or self._all_keys),
            start="last",
            deliver=deliver,
        )
        part.open()
        return Reader([part])

    def writes(self, handler: Callable[[str, int, msgspec.DecodeError | None], object], *, after: int) -> Reader:
        """Call back with every write by somebody else after this revision. Stop it when done.

        `handler` is given key and revision, and why the value cannot be read if it cannot.

        Deletions do not count. Ours are known by their message ids, which begin with `_writer`.
        """

        def deliver(msg: Msg, delivery: Delivery) -> None:
            headers = msg.headers or {}
            if _OPERATION in headers or _REMOVED_BY_SERVER in headers:
                return
            if not headers.get(MESSAGE_ID, "").startswith(self._writer):
                problem = None
                try:
                    self._decoder.decode(msg.data)
                except msgspec.DecodeError as error:
                    problem = error
                handler(msg.subject.removeprefix(self._prefix), delivery.stream_sequence, problem)

        part = OrderedReader(
            self._connection,
            self._requests,
            stream=self._stream,
            pattern=self._prefix + self._all_keys,
            start=FromSequence(after + 1),
            deliver=deliver,
        )
        part.open()
        return Reader([part])

    async def _put(
        self,
        key: str,
        data: bytes,
        last: int | None,
        *,
        headers: dict[str, str] | None = None,
        deadline_s: float | None = None,
        try_s: float | None = None,
    ) -> int:
        ack = await self._publisher.publish(
            self._prefix + key,
            data,
            message_id=f"{self._writer}.{unique()}",
            stream=f"KV_{self.bucket.name}",
            headers=headers,
            expect_last=last,
            deadline_s=deadline_s,
            try_s=try_s,
            urgent=try_s is not None,
        )
        return ack.sequence

    async def _get(self, key: str) -> Entry[V] | Removal | None:
        subject = f"$JS.API.DIRECT.GET.{self._stream}.{self._prefix}{key}"
        msg = await self._requests.ask(subject, b"", timeout_s=self._connection.settings.publish_timeout_s)
        headers = msg.headers or {}
        if headers.get("Status"):
            return None
        return self._entry(
            key,
            msg.data,
            headers,
            revision=int(headers["Nats-Sequence"]),
            time_ns=parse_time(headers.get("Nats-Time-Stamp", "")),
        )

    async def _get_when_possible(self, key: str) -> Entry[V] | Removal | None:
        while True:
            await self._connection.wait_connected()
            try:
                return await self._get(key)
            except (Disconnected, RequestTimeout, NoResponders):
                continue

    def _entry(
        self, key: str, data: bytes, headers: dict[str, str] | None, *, revision: int, time_ns: int
    ) -> Entry[V] | Removal:
        if headers and (headers.get(_OPERATION) in _GONE or _REMOVED_BY_SERVER in headers):
            return Removal(key=key, revision=revision, time_ns=time_ns)
        return Entry(key=key, value=self._decoder.decode(data), revision=revision, time_ns=time_ns)


def parse_time(text: str) -> int:
    """Read RFC 3339 with up to nine digits of fraction; 0 for nothing."""
    if not text:
        return 0
    whole, _, fraction = text.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(whole + "+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0") or 0)
