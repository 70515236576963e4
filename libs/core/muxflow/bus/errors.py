"""What can go wrong on the bus, and what a handler may raise."""

from __future__ import annotations


class BusError(Exception):
    """Base of everything below."""


class Disconnected(BusError):
    """The connection was lost before the answer came. Publishes try again by themselves."""


class NoResponders(BusError):
    """Nobody listens on the subject: the service is down, or no stream keeps it."""


class RequestTimeout(BusError, TimeoutError):
    """No answer in time."""


class PublishTimeout(BusError, TimeoutError):
    """The deadline passed without an ack; the event may or may not have been stored."""


class PublishRefused(BusError):
    """The server understood the publish and said no; trying again will not help.

    `code` is JetStream's error code, 0 when the refusal came from elsewhere.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class WrongLastSequence(PublishRefused):
    """Somebody else wrote in between: the compare of compare-and-swap failed."""


class StreamFull(PublishRefused):
    """The stream has reached its limits and refuses new messages."""


class PayloadTooLarge(PublishRefused):
    """The message is larger than the server or the stream takes."""


class Forbidden(PublishRefused):
    """These credentials do not allow the subject."""


class KeyExists(BusError):
    """The key of a key-value bucket is already there."""


class ObjectDamaged(BusError):
    """An object is there, and cannot be read. The message names it and says what is wrong."""


class QueryError(BusError):
    """A question that was answered by an error. Responders raise it; askers get it.

    `code` follows HTTP: 400 bad question, 404 no such thing, 500 the responder failed.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
        self.text = text


class OutboxFull(BusError):
    """The outbox has reached its bound; nothing was stored."""


class Retry(Exception):
    """Raised by a handler: not now. The message comes again after `delay_s`, or a growing delay if None."""

    def __init__(self, reason: str = "", *, delay_s: float | None = None) -> None:
        super().__init__(reason)
        self.delay_s = delay_s


class Undeliverable(Exception):
    """Raised by a handler: this message can never be handled. It goes to the dead letters."""
