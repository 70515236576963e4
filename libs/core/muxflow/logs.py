"""Logging of every process: structlog, console on a terminal and JSON lines elsewhere, always on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.tracebacks import ExceptionDictTransformer

from muxflow import trace
from muxflow.settings import LogSettings


def configure(settings: LogSettings, *, service: str) -> None:
    """Set up structlog, and route the standard library's logging (nats-py's) through it."""
    level = getattr(logging, settings.level.upper())
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_service(service),
        _add_trace,
    ]
    # Tracebacks without local variables: those may hold secrets.
    renderer: list[Any] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)


def _add_service(service: str) -> Any:
    def add(_logger: Any, _method: str, fields: dict[str, Any]) -> dict[str, Any]:
        fields["service"] = service
        return fields

    return add


def _add_trace(_logger: Any, _method: str, fields: dict[str, Any]) -> dict[str, Any]:
    if current := trace.current():
        fields["trace_id"] = current.trace_id
    return fields
