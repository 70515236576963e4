"""Asks programs of ours on loopback how they are."""

from __future__ import annotations

import asyncio


async def get(port: int, path: str, *, timeout_s: float = 2.0) -> tuple[int, str]:
    """Give status and body of one answer. Raises OSError when there is none; TimeoutError is one."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = await reader.read(-1)
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    try:
        status = int(head.split(maxsplit=2)[1])
    except (IndexError, ValueError):
        raise ConnectionError(f"port {port} does not speak HTTP") from None
    return status, body.decode(errors="replace").strip()
