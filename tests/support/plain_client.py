"""A NATS client made of a socket: no library of ours or anybody else's but the one that signs. Sends no headers."""

from __future__ import annotations

import base64
import json
import socket
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nkeys

DEADLINE_S = 20.0


class RefusedError(Exception):
    """The server's own words."""


class PlainClient:
    """One connection to the server of a machine, with the credentials of one of its roles; used with ``with``."""

    def __init__(self, state_dir: Path, credentials: str = "user-default") -> None:
        connection = json.loads((state_dir / "connection.json").read_text())
        host, _, port = connection["server"].removeprefix("nats://").partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
        self._lines = self._socket.makefile("rb")
        self._arrived: deque[tuple[str, dict[str, Any]]] = deque()
        self._log_in((state_dir / "credentials" / f"{credentials}.nk").read_bytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()

    def publish(self, subject: str, payload: bytes) -> None:
        """Publish, and wait until the server has taken it. Raises `RefusedError`."""
        self._send(f"PUB {subject} {len(payload)}\r\n".encode() + payload + b"\r\n")
        self._ping()

    def subscribe(self, subject: str) -> None:
        """Raises `RefusedError`."""
        self._send(f"SUB {subject} 1\r\n".encode())
        self._ping()

    def next_event(self) -> tuple[str, dict[str, Any]]:
        """Wait for the next message: its subject, and the object in it."""
        while not self._arrived:
            self._read()
        return self._arrived.popleft()

    def _ping(self) -> None:
        self._send(b"PING\r\n")
        while self._read() != b"PONG":
            pass

    def _read(self) -> bytes:
        """Take in one thing that the server says; gives its verb."""
        line = self._lines.readline()
        verb, *fields = line.split()
        if verb == b"-ERR":
            raise RefusedError(line.decode().strip())
        if verb == b"PING":
            self._send(b"PONG\r\n")
        elif verb in (b"MSG", b"HMSG"):
            body = self._lines.read(int(fields[-1]))
            self._lines.readline()
            headers = int(fields[-2]) if verb == b"HMSG" else 0
            self._arrived.append((fields[0].decode(), json.loads(body[headers:])))
        return verb

    def _log_in(self, seed: bytes) -> None:
        key = nkeys.from_seed(bytearray(seed.strip()))
        nonce = json.loads(self._lines.readline().removeprefix(b"INFO "))["nonce"]
        signature = base64.urlsafe_b64encode(key.sign(nonce.encode())).decode().rstrip("=")
        hello = {"verbose": False, "headers": True, "nkey": key.public_key.decode(), "sig": signature}
        self._send(b"CONNECT " + json.dumps(hello).encode() + b"\r\n")
        self._ping()

    def _send(self, data: bytes) -> None:
        self._socket.sendall(data)
