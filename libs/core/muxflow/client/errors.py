"""What can go wrong for a client. Every message is one line that says how to put it right."""

from __future__ import annotations

from muxflow.contracts import JobRejected


class ClientError(Exception):
    """Base of everything below."""


class NotConnected(ClientError):
    """There is no server, no credentials, or they do not fit."""


class NotAllowed(ClientError):
    """The credentials' role may not do this."""


class NotFound(ClientError):
    """There is no such job, log or dead letter."""


class AlreadyEnded(ClientError):
    """The job has finished or failed: there is nothing left to cancel."""


class NoAnswer(ClientError):
    """The service that should answer does not."""


class Rejected(ClientError):
    """The scheduler refused a submission or cancellation; `event` says why and names the field."""

    def __init__(self, event: JobRejected) -> None:
        super().__init__(f"{event.field}: {event.reason}" if event.field else event.reason)
        self.event = event
