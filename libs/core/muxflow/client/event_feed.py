"""Events as they were and as they come, of many subjects, in one order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from muxflow.bus import Bus, FromTime, Message, Reader, Subscription
from muxflow.client.errors import NoAnswer, NotAllowed, NotFound
from muxflow.contracts import SUBJECTS, Event, Role, Subject, decode_token

_CATCH_UP_S: Final = 15.0
_HISTORIANS: Final = (Role.OPERATOR, Role.OBSERVER)


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """One event and where it came from."""

    subject: str
    kind: str
    """Short name of the kind of subject, such as ``jobs.finished``."""
    names: dict[str, str]
    """The names in the subject: tenant, job, node, gpu."""
    time_ns: int
    """When the server stored it, or when it was made if it is not kept."""
    sequence: int | None
    """Position in its stream, if it was read from there."""
    event: Any
    """An `Event` of the type of that subject."""


class Selection(msgspec.Struct, frozen=True):
    """Kinds of subjects, and names that must be in them."""

    role: Role | None
    subjects: tuple[tuple[Subject, dict[str, str]], ...]


def select(beginning: str, role: Role | None) -> Selection:
    """Find the subjects that begin so, as far as the role may read them. Raises `NotFound` and `NotAllowed`."""
    tokens = [token for token in beginning.removeprefix("muxflow").strip(".").removesuffix(".>").split(".") if token]
    matching = [
        (subject, bindings)
        for subject in SUBJECTS
        if subject.reply is None and (bindings := _bindings(subject, tokens)) is not None
    ]
    if not matching:
        known = ", ".join(sorted({subject.name.partition(".")[0] for subject in SUBJECTS if subject.reply is None}))
        raise NotFound(f"no subject begins with {beginning!r}; known are {known}")
    allowed = tuple((subject, bindings) for subject, bindings in matching if role is None or role in subject.readers)
    if not allowed:
        raise NotAllowed(f"the credentials of role {role} do not allow to read {beginning!r}; use an operator's")
    return Selection(role, allowed)


async def read(
    bus: Bus, selection: Selection, tenant: str | None, *, since_s: float | None, follow: bool
) -> AsyncIterator[Received]:
    """Read what is selected; history is sorted by time, live events come as they come."""
    history = since_s is not None
    if history and selection.role is not None and selection.role not in _HISTORIANS:
        raise NotAllowed(
            f"the credentials of role {selection.role} do not read past events: follow new ones, or use an operator's"
        )
    queue: asyncio.Queue[Received] = asyncio.Queue()

    def take(message: Message[Any]) -> None:
        queue.put_nowait(_received(message))

    open_ones: list[Reader | Subscription] = []
    try:
        for subject, bound in selection.subjects:
            bindings = {**({"tenant": tenant} if tenant and "tenant" in subject.placeholders else {}), **bound}
            if history and subject.stream is not None:
                start = FromTime(time.time_ns() - int((since_s or 0) * 1e9))
                open_ones.append(await bus.read(subject, take, start=start, bindings=bindings))
            elif follow:
                open_ones.append(await bus.subscribe(subject, take, bindings=bindings))
        for received in await _caught_up(open_ones, queue):
            yield received
        while follow:
            yield await queue.get()
    finally:
        for opened in open_ones:
            await opened.stop()


async def _caught_up(opened: list[Reader | Subscription], queue: asyncio.Queue[Received]) -> list[Received]:
    readers = [reader for reader in opened if isinstance(reader, Reader)]
    try:
        async with asyncio.timeout(_CATCH_UP_S):
            await asyncio.gather(*(reader.caught_up() for reader in readers))
    except TimeoutError:
        raise NoAnswer(f"past events could not be read within {_CATCH_UP_S:g} s") from None
    past = [queue.get_nowait() for _ in range(queue.qsize())]
    return sorted(past, key=lambda received: received.time_ns)


def _bindings(subject: Subject, tokens: list[str]) -> dict[str, str] | None:
    """Match leading tokens; gives the names that they fix, None if they do not match."""
    template = subject.template.split(".")[1:]
    if len(tokens) > len(template):
        return None
    bindings = {}
    for wanted, token in zip(template, tokens, strict=False):
        if wanted.startswith("{"):
            if token not in ("*", ">"):
                bindings[wanted[1:-1]] = _name(token)
        elif token not in (wanted, "*"):
            return None
    return bindings


def _name(token: str) -> str:
    """Take a token as it stands in a subject, or a name as people write it."""
    try:
        return decode_token(token)
    except ValueError:
        return token


def _received(message: Message[Any]) -> Received:
    event: Event = message.event
    return Received(
        subject=message.address,
        kind=message.subject.name,
        names=message.names,
        time_ns=message.time_ns or event.time_ns,
        sequence=message.stream_sequence,
        event=event,
    )
