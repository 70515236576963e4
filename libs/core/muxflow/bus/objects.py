"""Object stores: large values in chunks, read and written whole. Compatible with ``nats object``.

nats-py has a client of its own, which lists streams and creates consumers that no narrow permission can name, and lives
on one connection only.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from nats.aio.msg import Msg

from muxflow.bus.connection import Connection
from muxflow.bus.errors import BusError, ObjectDamaged, RequestTimeout
from muxflow.bus.message import Delivery
from muxflow.bus.publishing import Publisher
from muxflow.bus.reader import OrderedReader
from muxflow.bus.requests import Requests, unique

CHUNK_BYTES: Final = 128 * 1024
_READ_S: Final = 30.0
_ROLLUP: Final = {"Nats-Rollup": "sub"}


class _Info(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The message that makes an object one: what other clients read and write."""

    name: str
    bucket: str
    nuid: str = ""
    size: int = 0
    mtime: str = ""
    chunks: int = 0
    digest: str = ""
    deleted: bool = False


class ObjectStore:
    """One store."""

    def __init__(self, name: str, connection: Connection, requests: Requests, publisher: Publisher) -> None:
        self.name = name
        self._connection = connection
        self._requests = requests
        self._publisher = publisher
        self._stream = f"OBJ_{name}"

    async def put(self, name: str, data: bytes) -> None:
        """Store an object under a name; what it had before is dropped once the new one is there.

        Whoever reads meanwhile gets the old one or the new one. Raises `PublishRefused`.
        """
        before = await self._info_or_none(name)
        nuid = unique()
        pieces = [data[begin : begin + CHUNK_BYTES] for begin in range(0, len(data), CHUNK_BYTES)]
        try:
            for number, piece in enumerate(pieces):
                await self._publish(self._chunks(nuid), piece, f"{nuid}.{number}")
            info = _Info(
                name=name,
                bucket=self.name,
                nuid=nuid,
                size=len(data),
                mtime=_now(),
                chunks=len(pieces),
                digest=_digest(data),
            )
            await self._publish(self._meta(name), msgspec.json.encode(info), nuid, rollup=True)
        except BusError:
            with contextlib.suppress(BusError):
                await self._purge(nuid)
            raise
        if before is not None and before.nuid:
            await self._purge(before.nuid)

    async def get(self, name: str) -> bytes | None:
        """Read an object; None if there is none of this name.

        Raises `ObjectDamaged`, `Forbidden`, `Disconnected`, `RequestTimeout`, `NoResponders`.
        """
        info = await self._info(name)
        if info is None or info.deleted:
            return None
        data = b"".join(await self._pieces(name, info)) if info.chunks else b""
        if len(data) != info.size or _digest(data) != info.digest:
            raise ObjectDamaged(f"object {self.name}/{name}: {len(data)} of {info.size} bytes, or other ones")
        return data

    async def delete(self, name: str) -> None:
        """Drop an object, if it is there."""
        info = await self._info_or_none(name)
        if info is None or info.deleted:
            return
        gone = _Info(name=name, bucket=self.name, mtime=_now(), deleted=True)
        await self._publish(self._meta(name), msgspec.json.encode(gone), unique(), rollup=True)
        if info.nuid:
            await self._purge(info.nuid)

    async def names(self) -> list[str]:
        """List the objects, by name. Those that cannot be read are left out.

        Raises `Disconnected`, `RequestTimeout`.
        """
        found: dict[str, bool] = {}

        def note(msg: Msg, _: Delivery) -> None:
            with contextlib.suppress(msgspec.DecodeError):
                info = msgspec.json.decode(msg.data, type=_Info)
                found[info.name] = not info.deleted

        reader = self._reader(f"$O.{self.name}.M.*", "last", note)
        reader.open()
        try:
            await asyncio.wait_for(reader.caught_up(), _READ_S)
        except TimeoutError:
            raise RequestTimeout(f"objects of {self.name}: not listed within {_READ_S:g} s") from None
        finally:
            await reader.stop()
        return sorted(name for name, there in found.items() if there)

    async def _info(self, name: str) -> _Info | None:
        subject = self._meta(name)
        msg = await self._requests.ask(
            f"$JS.API.DIRECT.GET.{self._stream}.{subject}",
            b"",
            timeout_s=self._connection.settings.publish_timeout_s,
        )
        if (msg.headers or {}).get("Status"):
            return None
        try:
            return msgspec.json.decode(msg.data, type=_Info)
        except msgspec.DecodeError as error:
            raise ObjectDamaged(f"object {self.name}/{name}: {error}") from None

    async def _info_or_none(self, name: str) -> _Info | None:
        """The same; what is damaged is as good as not there: it is about to be replaced."""
        try:
            return await self._info(name)
        except ObjectDamaged:
            return None

    async def _pieces(self, name: str, info: _Info) -> list[bytes]:
        """Read the chunks that there are, in order."""
        pieces: list[bytes] = []
        complete = asyncio.Event()

        def take(msg: Msg, _: Delivery) -> None:
            pieces.append(msg.data)
            if len(pieces) >= info.chunks:
                complete.set()

        reader = self._reader(self._chunks(info.nuid), "all", take)
        reader.open()
        try:
            await asyncio.wait_for(_first(complete.wait(), reader.caught_up()), _READ_S)
        except TimeoutError:
            raise ObjectDamaged(f"object {self.name}/{name}: not read within {_READ_S:g} s") from None
        finally:
            await reader.stop()
        return pieces

    def _reader(self, pattern: str, start: Any, deliver: Any) -> OrderedReader:
        return OrderedReader(
            self._connection, self._requests, stream=self._stream, pattern=pattern, start=start, deliver=deliver
        )

    async def _publish(self, subject: str, data: bytes, message_id: str, *, rollup: bool = False) -> None:
        headers = _ROLLUP if rollup else None
        await self._publisher.publish(subject, data, message_id=message_id, headers=headers)

    async def _purge(self, nuid: str) -> None:
        await self._requests.api(
            f"STREAM.PURGE.{self._stream}",
            {"filter": self._chunks(nuid)},
            timeout_s=self._connection.settings.publish_timeout_s,
        )

    def _chunks(self, nuid: str) -> str:
        return f"$O.{self.name}.C.{nuid}"

    def _meta(self, name: str) -> str:
        return f"$O.{self.name}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


async def _first(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _digest(data: bytes) -> str:
    return "SHA-256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
