"""A job's output, read from the node that has it: across restarts of whoever answers, and from attempt to attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec

from muxflow.client.errors import NoAnswer, NotConnected, NotFound
from muxflow.contracts import JobRecord, JobReply, LogsQuery, LogsReply

_PAUSE_S: Final = 0.3


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where an attempt's output is."""

    node: str
    over: bool
    """Whether the attempt is known to have ended."""
    left: bool
    """Whether there is a newer attempt: nobody waits for the rest of this one."""


class OutputReader:
    """Reads one job's output; what is not output goes to `notice`, one line each for people."""

    def __init__(
        self,
        tenant: str,
        name: str,
        *,
        ask: Callable[[], Awaitable[JobReply]],
        read: Callable[[str, LogsQuery], Awaitable[LogsReply]],
        notice: Callable[[str], None],
    ) -> None:
        self._job = f"{tenant}/{name}"
        self._name = name
        self._ask = ask
        self._read = read
        """Puts a question to the executor of a node."""
        self._notice = notice
        self._said: set[str] = set()

    async def kept(self, attempt: int | None) -> AsyncIterator[LogsReply]:
        """Read what there is of one attempt, by default of the newest. Raises `NotFound`, `NoAnswer`."""
        reply = await self._ask()
        record = reply.record
        if record.last_placement is None:
            self._say_why_not_started(reply)
            return
        number, node = attempt or record.attempt, record.last_placement.node
        silent, offset = True, 0
        try:
            while (piece := await self._read(node, LogsQuery(job=record.job, attempt=number, offset=offset))).data:
                silent, offset = False, piece.end
                yield piece
        except NotFound:
            if number != record.attempt or (record.state.terminal and not _never_started(record)):
                raise
        if silent:
            self._say_why_silent(record, number)

    async def followed(self, attempt: int | None) -> AsyncIterator[LogsReply]:
        """Read until the job, or the attempt that was asked for, has ended and everything was read.

        Raises `NotFound` when there is no such job.
        """
        reply = await self._patiently()
        number = attempt or max(1, reply.record.attempt)
        begun = False
        while True:
            async for piece in self._to_the_end_of(number):
                begun = True
                yield piece
            record = (await self._patiently()).record
            if not begun:
                self._say_why_silent(record, number)
            if attempt or (record.state.terminal and record.attempt <= number):
                return
            number, begun = number + 1, False
            if not await self._until_placed(number):
                return
            self._notice(f"attempt {number} of {self._job} begins")

    async def _to_the_end_of(self, number: int) -> AsyncIterator[LogsReply]:
        """Read one attempt's output until the scheduler knows that it is over, and nothing is left to read."""
        if not await self._until_placed(number):
            return
        place = await self._place(number)
        offset = 0
        while True:
            try:
                piece = await self._piece(place, number, offset)
            except (NoAnswer, NotConnected) as error:
                self._say_once(f"read {number}", f"{error}; asking again until it does")
                if place.left:
                    return
                await asyncio.sleep(_PAUSE_S)
                place = await self._place(number, place)
                continue
            if piece and piece.data:
                offset = piece.end
                yield piece
                continue
            goes_on = piece is not None and piece.running
            if place.over and not goes_on:
                return
            await asyncio.sleep(_PAUSE_S)
            if not goes_on:  # asked before the next read: an attempt that is over then has printed everything
                place = await self._place(number, place)

    async def _place(self, number: int, before: Place | None = None) -> Place:
        record = (await self._patiently()).record
        newer = record.attempt > number
        here = record.last_placement.node if record.last_placement else ""
        return Place(node=before.node if before and newer else here, over=newer or record.placement is None, left=newer)

    async def _piece(self, place: Place, number: int, offset: int) -> LogsReply | None:
        """Read on; None if the node knows nothing of the attempt: it was not started there yet, or never."""
        try:
            return await self._read(place.node, LogsQuery(job=self._name, attempt=number, offset=offset))
        except NotFound:
            return None

    async def _until_placed(self, number: int) -> bool:
        """Wait until an attempt is made; False when the job ends without it."""
        while True:
            reply = await self._patiently()
            record = reply.record
            if record.last_placement is not None and record.attempt >= number:
                return True
            if record.state.terminal:
                if record.last_placement is None:
                    self._say_why_not_started(reply)
                return False
            why = f": {reply.waiting}" if reply.waiting else ""
            what = "has not been started yet" if number == 1 else f"waits for attempt {number}"
            self._say_once(f"wait {number}", f"{self._job} {what}{why}; waiting for it")
            await asyncio.sleep(_PAUSE_S)

    async def _patiently(self) -> JobReply:
        """Ask until there is an answer."""
        while True:
            try:
                return await self._ask()
            except (NoAnswer, NotConnected) as error:
                self._say_once("ask", f"{error}; asking again until it does")
                await asyncio.sleep(_PAUSE_S)

    def _say_why_not_started(self, reply: JobReply) -> None:
        never = "was never started" if reply.record.state.terminal else "has not been started yet"
        why = reply.waiting or reply.record.reason or reply.record.state.value
        self._notice(f"{self._job} {never}, so it has no output: {why}")

    def _say_why_silent(self, record: JobRecord, number: int) -> None:
        """Say why an attempt printed nothing, where that is because its program never ran."""
        if number == record.attempt and (error := _never_started(record)):
            self._notice(f"attempt {number} of {self._job} never started: {error}")

    def _say_once(self, about: str, text: str) -> None:
        if about not in self._said:
            self._said.add(about)
            self._notice(text)


def _never_started(record: JobRecord) -> str | None:
    """Why the program of the newest attempt never ran; None if it did, or may yet."""
    return record.last_exit.error if record.last_exit and record.placement is None else None
