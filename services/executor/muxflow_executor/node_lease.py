"""The node's lease: who holds it may start and run attempts; who has lost it has stopped them.

Two files speak for it: ``lease`` (boot id and deadline by CLOCK_BOOTTIME, read by every shim) and ``session.json`` (the
sessions that this node may have taken a lease under, so that a restarted executor recognises its own).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from pathlib import Path
from typing import Final

import msgspec
import structlog

from muxflow.bus import BusError, Entry, KeyExists, KeyValue, WrongLastSequence
from muxflow.contracts import NodeLease as LeaseValue
from muxflow_decisions.lease import LeaseTerms, deadline, held, renew_at
from muxflow_executor.attempts import read_record, write_record
from muxflow_executor.shim.records import boot_id, boottime_ns

log = structlog.get_logger()

_SECOND_NS: Final = 1_000_000_000


class Sessions(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions of this node that the bus may know; the last one is the current one."""

    sessions: tuple[str, ...] = ()


class NodeLease:
    """One node's entry in the bucket of leases."""

    def __init__(self, leases: KeyValue[LeaseValue], *, node: str, state_dir: Path, terms: LeaseTerms) -> None:
        self._leases = leases
        self._node = node
        self._key = leases.key(node=node)
        self._terms = terms
        self._lease_file = state_dir / "lease"
        self._session_file = state_dir / "session.json"
        self._sessions = (read_record(self._session_file, Sessions) or Sessions()).sessions
        self._boot_id = boot_id()
        self._sent_ns: int | None = None
        self._revision = 0

    @property
    def session(self) -> str | None:
        """The session while the lease is held."""
        return self._sessions[-1] if held(self._terms, self._sent_ns, boottime_ns()) else None

    @property
    def remaining_s(self) -> float:
        """How long the lease is certain; 0 when it is not held."""
        if self._sent_ns is None:
            return 0.0
        return max(0, deadline(self._terms, self._sent_ns) - boottime_ns()) / _SECOND_NS

    async def resume(self) -> bool:
        """Go on in the session of the process before, if its lease still runs. False: it is lost."""
        deadline_ns = self._last_deadline_ns()
        while self._sessions and boottime_ns() < deadline_ns:
            try:
                entry = await self._leases.get(self._key)
            except BusError:
                await asyncio.sleep(self._pause_s)
                continue
            if entry is None or entry.value.session != self._sessions[-1]:
                return False
            self._revision = entry.revision
            return await self._renew(deadline_ns) is None
        return False

    async def begin(self) -> None:
        """Take a lease with a new session. Call it when nothing runs any more. Waits while somebody else holds it."""
        before = self._sessions
        sessions = (*before, uuid.uuid4().hex)
        await asyncio.to_thread(write_record, self._session_file, Sessions(sessions=sessions))
        foreign_ns: int | None = None
        while True:
            with contextlib.suppress(BusError):
                entry = await self._leases.get(self._key)
                if entry is not None and entry.value.session not in sessions:
                    if foreign_ns is None:
                        log.error("another executor holds the lease of this node", node=self._node)
                    foreign_ns = boottime_ns()
                elif foreign_ns is not None and boottime_ns() < foreign_ns + self._after_foreign_ns:
                    pass  # its attempts may be in their grace
                elif await self._take(entry, sessions):
                    break
            await asyncio.sleep(self._pause_s)
        await asyncio.to_thread(write_record, self._session_file, Sessions(sessions=sessions[-1:]))

    async def keep(self) -> str:
        """Renew until the lease is lost; returns why."""
        while self._sent_ns is not None:
            wait_ns = renew_at(self._terms, self._sent_ns) - boottime_ns()
            await asyncio.sleep(max(0, wait_ns) / _SECOND_NS)
            lost = await self._renew(deadline(self._terms, self._sent_ns))
            if lost is not None:
                self._sent_ns = None
                return lost
        return "it is not held"

    async def release(self) -> None:
        """Give it up, when nothing runs any more."""
        self._sent_ns = None
        with contextlib.suppress(BusError):
            await self._leases.delete(self._key, last=self._revision, deadline_s=1.0)

    async def _take(self, entry: Entry[LeaseValue] | None, sessions: tuple[str, ...]) -> bool:
        sent_ns = boottime_ns()
        value, limit_s = self._value(sessions[-1]), self._terms.duration_ns / _SECOND_NS
        try:
            if entry is None:
                revision = await self._leases.create(self._key, value, deadline_s=limit_s, try_s=limit_s / 3)
            else:
                revision = await self._leases.update(
                    self._key, value, last=entry.revision, deadline_s=limit_s, try_s=limit_s / 3
                )
        except (KeyExists, WrongLastSequence):
            return False
        if not held(self._terms, sent_ns, boottime_ns()):
            return False
        await self._extend(sent_ns)
        self._sessions, self._revision, self._sent_ns = sessions, revision, sent_ns
        return True

    async def _renew(self, deadline_ns: int) -> str | None:
        """Renew once before the deadline; returns why that failed for good."""
        while True:
            sent_ns = boottime_ns()
            left_s = (deadline_ns - sent_ns) / _SECOND_NS
            if left_s <= 0:
                return "it could not be renewed in time"
            try:
                # One identity until the end: a try that was stored and whose ack was lost counts from the first send.
                revision = await self._leases.update(
                    self._key,
                    self._value(self._sessions[-1]),
                    last=self._revision,
                    deadline_s=left_s,
                    try_s=self._terms.duration_ns / _SECOND_NS / 4,
                )
            except WrongLastSequence:
                return "it was taken away"
            except BusError as error:
                log.warning("lease not renewed", error=str(error))
                await asyncio.sleep(self._pause_s)
                continue
            if not held(self._terms, sent_ns, boottime_ns()):
                return "it could not be renewed in time"
            self._revision, self._sent_ns = revision, sent_ns
            await self._extend(sent_ns)
            return None

    async def _extend(self, sent_ns: int) -> None:
        """Tell the shims. While the disk does not take it they believe the deadline before, which is only earlier."""
        try:
            await asyncio.to_thread(self._write_deadline, deadline(self._terms, sent_ns))
        except OSError as error:
            log.error("shims cannot be told that the lease goes on", error=str(error))  # noqa: TRY400

    def _write_deadline(self, deadline_ns: int) -> None:
        temporary = self._lease_file.with_suffix(".tmp")
        temporary.write_text(f"{self._boot_id} {deadline_ns}\n")
        temporary.replace(self._lease_file)

    def _last_deadline_ns(self) -> int:
        try:
            boot, deadline_ns = self._lease_file.read_text().split()
            return int(deadline_ns) if boot == self._boot_id else 0
        except (OSError, ValueError):
            return 0

    def _value(self, session: str) -> LeaseValue:
        return LeaseValue(node=self._node, boot_id=self._boot_id, session=session, time_ns=time.time_ns())

    @property
    def _after_foreign_ns(self) -> int:
        return self._terms.grace_ns + self._terms.margin_ns

    @property
    def _pause_s(self) -> float:
        return min(1.0, self._terms.duration_ns / _SECOND_NS / 10)
