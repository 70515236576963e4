"""``/healthz``, ``/readyz`` and ``/metrics`` of one process.

Served from a thread of its own, so that an event loop which hangs is reported as such instead of not answering:
``/healthz`` fails when the loop has not run for `STALE_S` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

STALE_S: Final = 10.0


class Health:
    """What a process says about itself; written by the event loop, read by the serving thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._beat = time.monotonic()
        self._checks: dict[str, Callable[[], str | None]] = {}

    def beat(self) -> None:
        """Tell that the event loop runs. Called about once a second."""
        self._beat = time.monotonic()

    def require(self, name: str, check: Callable[[], str | None]) -> None:
        """Add a readiness check: it returns None, or the reason why this process is not ready."""
        self._checks[name] = check

    def live(self) -> str | None:
        """Why this process should be restarted, or None."""
        age_s = time.monotonic() - self._beat
        return f"event loop silent for {age_s:.0f} s" if age_s > STALE_S else None

    def ready(self) -> str | None:
        """Why this process does no work at present, or None."""
        reasons = [f"{name}: {reason}" for name, check in self._checks.items() if (reason := check())]
        return self.live() or "; ".join(reasons) or None


class HealthServer:
    """Serves one process's health until closed. OSError when the port is taken."""

    def __init__(self, health: Health, *, host: str, port: int) -> None:
        handler = type("Handler", (_Handler,), {"health": health})
        self._server = ThreadingHTTPServer((host, port), handler)
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port in use."""
        return self._server.server_port

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    health: Health

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._answer(HTTPStatus.OK, generate_latest(self.health.registry), CONTENT_TYPE_PLAIN_0_0_4)
        elif self.path == "/healthz":
            self._answer_check(self.health.live())
        elif self.path == "/readyz":
            self._answer_check(self.health.ready())
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"known are /healthz, /readyz and /metrics\n")

    def _answer_check(self, reason: str | None) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
        self._answer(status, f"{reason or 'ok'}\n".encode())

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing: probes come every second."""
