"""A TCP proxy in front of a server, to cut a connection as a broken network does: bytes go nowhere, nobody is told."""

from __future__ import annotations

import asyncio
import contextlib


class Proxy:
    """Forwards to one address while `open`; holds everything back while cut."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._swallowing = False
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Partition: nothing passes, in either direction, and connections stay open."""
        self._open.clear()

    def mend(self) -> None:
        """What was held back is delivered late, as TCP does."""
        self._open.set()

    def swallow_answers(self) -> None:
        """What the server says on connections of now is lost; what it is told arrives."""
        self._swallowing = True

    def drop_connections(self) -> None:
        """End every connection; new ones work."""
        self._swallowing = False
        for pump in tuple(self._pumps):
            pump.cancel()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.close()
            return
        for source, sink, answers in ((reader, up_writer, False), (up_reader, writer, True)):
            task = asyncio.get_running_loop().create_task(self._pump(source, sink, answers=answers))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    await self._open.wait()
                    if answers and self._swallowing:
                        continue
                    sink.write(data)
                    await sink.drain()
        finally:
            with contextlib.suppress(OSError):
                sink.close()
