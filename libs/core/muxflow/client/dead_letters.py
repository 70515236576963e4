"""The dead letters from an operator's side: list, show, send again.

Stream DEAD holds two kinds of messages: letters that services wrote, and the server's own word on messages whose
handler died each time. The latter name only the stream and the sequence: the original is fetched from there.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from email.parser import BytesHeaderParser
from typing import Any, Final

import msgspec

from muxflow.bus import Bus, FromSequence, Message, Start
from muxflow.bus.requests import ApiError
from muxflow.client.errors import NoAnswer, NotFound
from muxflow.contracts import DeadLetter, Event, Subject
from muxflow.contracts.catalogue import DEAD, MAX_DELIVERIES_ADVISORY

_CATCH_UP_S: Final = 15.0
_ANSWER_S: Final = 5.0


class DeadEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter."""

    number: int
    """Position in the stream DEAD: how people refer to it."""
    time_ns: int
    """When it was given up."""
    letter: DeadLetter


class _GivenUp(Event, frozen=True, kw_only=True):
    """The server's word that it will not deliver a message again."""

    stream: str
    consumer: str
    stream_seq: int
    deliveries: int


_ADVISORY: Final = Subject(
    name="advisory",
    template=MAX_DELIVERIES_ADVISORY.removesuffix(">") + "{stream}.{consumer}",
    event=_GivenUp,
    stream=DEAD.stream,
    publishers=(),
    readers=DEAD.readers,
)


async def read_all(bus: Bus) -> tuple[DeadEntry, ...]:
    """Read every letter, oldest first. Raises `NoAnswer`."""
    messages = await _read(bus, "all")
    return tuple([await _entry(bus, message) for message in messages])


async def read_one(bus: Bus, number: int) -> DeadEntry:
    """Read one letter, with its payload wherever that is. Raises `NotFound` and `NoAnswer`."""
    message = next(iter(await _read(bus, FromSequence(number))), None)
    if message is None or message.stream_sequence != number:
        raise NotFound(f"there is no dead letter {number}; see `muxflow dead list`")
    entry = await _entry(bus, message)
    letter = entry.letter
    if letter.data or letter.stream is None or letter.stream_sequence is None:
        return entry
    original = await _original(bus, letter.stream, letter.stream_sequence)
    return msgspec.structs.replace(entry, letter=msgspec.structs.replace(letter, **original))


async def send_again(bus: Bus, entry: DeadEntry) -> None:
    """Publish the original bytes to the original subject; replaying a letter twice at once stores it once."""
    letter = entry.letter
    headers = {name: value for name, value in letter.headers.items() if not name.lower().startswith("nats-")}
    await bus.publish_raw(letter.subject, letter.data, message_id=f"replay:{entry.number}", headers=headers)


async def _read(bus: Bus, start: Start) -> Sequence[Message[Any]]:
    messages: list[Message[Any]] = []
    reader = await bus.read([DEAD, _ADVISORY], messages.append, start=start)
    try:
        async with asyncio.timeout(_CATCH_UP_S):
            await reader.caught_up()
    except TimeoutError:
        raise NoAnswer(
            f"the dead letters could not be read within {_CATCH_UP_S:g} s; are these an operator's credentials?"
        ) from None
    finally:
        await reader.stop()
    return sorted(messages, key=lambda message: message.stream_sequence or 0)


async def _entry(bus: Bus, message: Message[Any]) -> DeadEntry:
    event = message.event
    if isinstance(event, _GivenUp):
        event = DeadLetter(
            service=event.consumer,
            reason=f"its handler did not end in {event.deliveries} deliveries",
            stream=event.stream,
            stream_sequence=event.stream_seq,
            deliveries=event.deliveries,
            **{"subject": "", "data": b"", **await _original(bus, event.stream, event.stream_seq)},
        )
    return DeadEntry(number=message.stream_sequence or 0, time_ns=message.time_ns, letter=event)


async def _original(bus: Bus, stream: str, sequence: int) -> dict[str, Any]:
    """Fetch ``subject``, ``data`` and ``headers`` of a stored message; empty when it is gone."""
    try:
        answer = await bus.requests.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence}, timeout_s=_ANSWER_S)
    except ApiError:
        return {}
    message = answer["message"]
    _, _, headers = base64.b64decode(message.get("hdrs", "")).partition(b"\r\n")
    return {
        "subject": message["subject"],
        "data": base64.b64decode(message.get("data", "")),
        "headers": dict(BytesHeaderParser().parsebytes(headers).items()),
    }
