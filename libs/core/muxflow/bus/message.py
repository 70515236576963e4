"""What handlers receive."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from nats.aio.msg import Msg

from muxflow.contracts import Event, Subject, complete, decode

E = TypeVar("E", bound=Event)

UNKNOWN_SOURCE: Final = "unknown"
"""Source of events whose publisher did not say who it is."""
_NO_HEADERS: Final[Mapping[str, str]] = {}


class Delivery(NamedTuple):
    """What JetStream says about one delivery, from the subject that its ack goes to."""

    stream: str
    consumer: str
    deliveries: int
    stream_sequence: int
    consumer_sequence: int
    time_ns: int
    """When the server stored the message."""
    pending: int
    """Messages that the consumer has not delivered yet."""


def parse_ack_subject(reply: str) -> Delivery | None:
    """Read ``$JS.ACK[.<domain>.<account>].<stream>.<consumer>.<5 numbers>``; None for any other subject."""
    tokens = reply.split(".")
    first = 2 if len(tokens) == 9 else 4
    if len(tokens) < 9 or tokens[0] != "$JS" or tokens[1] != "ACK":
        return None
    numbers = (int(token) for token in tokens[first + 2 : first + 7])
    return Delivery(tokens[first], tokens[first + 1], *numbers)


class RawMessage:
    """A message before anybody looked into its payload."""

    __slots__ = ("_names", "address", "data", "delivery", "headers", "subject")

    def __init__(
        self, subject: Subject, address: str, data: bytes, headers: Mapping[str, str] | None, delivery: Delivery | None
    ) -> None:
        self.subject = subject
        """The kind of subject."""
        self.address = address
        """The concrete subject."""
        self.data = data
        self.headers: Mapping[str, str] = headers or _NO_HEADERS
        self.delivery = delivery
        """None for messages that did not come through JetStream."""
        self._names: dict[str, str] | None = None

    @property
    def names(self) -> dict[str, str]:
        """The decoded placeholders of the subject; ValueError if a token is no encoded name."""
        if self._names is None:
            self._names = self.subject.parse(self.address)
        return self._names

    @property
    def stream_sequence(self) -> int | None:
        """Position in the stream; None for live messages."""
        return self.delivery.stream_sequence if self.delivery else None

    @property
    def time_ns(self) -> int:
        """When the server stored it, by the server's clock; 0 for live messages."""
        return self.delivery.time_ns if self.delivery else 0

    @property
    def deliveries(self) -> int:
        """How often it has been delivered, this time included."""
        return self.delivery.deliveries if self.delivery else 1

    def decode(self, kind: type[E]) -> E:
        """Decode the payload, filling in what a plain client left out.

        Raises what `muxflow.contracts.decode` raises.
        """
        event = decode(self.data, kind)
        if event.id and event.source and event.time_ns:
            return event
        at = self.delivery
        return complete(
            event,
            id=f"{at.stream}:{at.stream_sequence}" if at else "",
            source=UNKNOWN_SOURCE,
            time_ns=at.time_ns if at else 0,
        )

    def contradiction(self, event: Event) -> str | None:
        """Say where an event speaks of somebody else than its subject, which is what permissions hold on to."""
        for name, value in self.names.items():
            said = getattr(event, name, value)
            if said != value:
                return f"{name} is {str(said)[:200]!r}, and the subject says {value!r}"
        return None

    @classmethod
    def of(cls, subject: Subject, msg: Msg) -> RawMessage:
        """Take over what nats-py received."""
        return cls(subject, msg.subject, msg.data, msg.headers, parse_ack_subject(msg.reply) if msg.reply else None)


class Message(RawMessage, Generic[E]):
    """A message and its event."""

    __slots__ = ("event",)

    def __init__(self, raw: RawMessage, event: E) -> None:
        super().__init__(raw.subject, raw.address, raw.data, raw.headers, raw.delivery)
        self.event = event


Handler = Callable[[Message[Any]], Awaitable[None] | None]
"""Handles one message; a plain function is as good as a coroutine function."""
RawHandler = Callable[[RawMessage], Awaitable[None] | None]
