"""For tests of services, clients and policies: a real server in a temporary folder."""

from __future__ import annotations

from muxflow.testing.server import TestServer, running_server

__all__ = ["TestServer", "running_server"]
