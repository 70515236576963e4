"""W3C trace context (https://www.w3.org/TR/trace-context/) of what is being handled: header ``traceparent``.

The bus puts the current context into every message it sends, and makes a received message's context current while its
handler runs, so that one trace id runs through a job's whole way. Exporting spans is not this module's business.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import msgspec

HEADER: Final = "traceparent"
_FORM: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class TraceContext(msgspec.Struct, frozen=True):
    """Trace and span of what is being handled."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""

    @property
    def traceparent(self) -> str:
        """The header's value."""
        return f"00-{self.trace_id}-{self.span_id}-01"

    def child(self) -> TraceContext:
        """A new span of the same trace."""
        return TraceContext(self.trace_id, secrets.token_hex(8))


_current: ContextVar[TraceContext | None] = ContextVar("muxflow_trace", default=None)


def current() -> TraceContext | None:
    """Give the context of what is being handled, if there is one."""
    return _current.get()


def start() -> TraceContext:
    """Begin a new trace."""
    return TraceContext(secrets.token_hex(16), secrets.token_hex(8))


def parse(traceparent: str | None) -> TraceContext | None:
    """Read a header; None for anything malformed, as the standard asks."""
    match = _FORM.fullmatch(traceparent or "")
    if match is None or set(match[1]) == {"0"} or set(match[2]) == {"0"}:
        return None
    return TraceContext(match[1], match[2])


@contextmanager
def use(context: TraceContext | None) -> Iterator[None]:
    """Make a context current for the block."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
