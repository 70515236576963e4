"""A real server for one test, provisioned, on a free port of the loopback interface."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from muxflow.bus import Bus, BusSettings
from muxflow.bus.credentials import Principal, ensure
from muxflow.bus.embedded import EmbeddedServer, ServerError, free_port
from muxflow.bus.provision import provision
from muxflow.bus.server_config import Server, render
from muxflow.contracts import Role

_ATTEMPTS = 5


class TestServer:
    """A server that a test may kill, restart and connect to."""

    __test__ = False  # not a test class, whatever its name looks like

    def __init__(self, directory: Path, process: EmbeddedServer, *, credentials: bool) -> None:
        self.directory = directory
        self.process = process
        self._credentials = credentials

    @property
    def url(self) -> str:
        return self.process.url

    def settings(self, role: Role | None = None, bound_to: str | None = None) -> BusSettings:
        """How to connect: as anybody, or in a role if the server was started with principals."""
        if role is None or not self._credentials:
            return BusSettings(servers=(self.url,))
        principal = Principal(role=role, bound_to=bound_to)
        return BusSettings(
            servers=(self.url,),
            credentials=str(principal.seed_path(self.directory / "credentials")),
            inbox_prefix=principal.inbox_prefix,
        )

    async def connect(self, role: Role | None = None, bound_to: str | None = None, *, source: str = "test") -> Bus:
        """Connect; close it before the server."""
        return await Bus.connect(self.settings(role, bound_to), source=source)

    async def kill(self) -> None:
        """SIGKILL."""
        await self.process.kill()

    async def start(self) -> None:
        """Start again, on the same port and store."""
        await self.process.start()


@asynccontextmanager
async def running_server(
    directory: Path | None = None,
    *,
    principals: Iterable[Principal] = (),
    provisioned: bool = True,
    ttl_s: Mapping[str, float] | None = None,
) -> AsyncIterator[TestServer]:
    """Run a server for the length of a ``with`` block.

    With `principals` it lets in only them (and a provisioner), each with the permissions of its role. `ttl_s` overrides
    the TTL of buckets.
    """
    with tempfile.TemporaryDirectory(prefix="muxflow-") as temporary:
        where = directory or Path(temporary)
        server = await _start(where, tuple(principals))
        try:
            if provisioned:
                async with await server.connect(Role.PROVISIONER, source="provisioner@test") as bus:
                    await provision(bus, ttl_s=ttl_s)
            yield server
        finally:
            await server.process.stop()


async def _start(directory: Path, principals: tuple[Principal, ...]) -> TestServer:
    users = {}
    if principals:
        everybody = dict.fromkeys((Principal(role=Role.PROVISIONER), *principals))
        users = ensure(directory / "credentials", everybody)
    for attempt in range(_ATTEMPTS):
        port = free_port()
        config = directory / "nats.conf"
        config.write_text(render(Server(name="test", port=port, store_dir=str(directory / "store")), users))
        process = EmbeddedServer(config, host="127.0.0.1", port=port, log=directory / "nats.log")
        try:
            await process.start()
        except ServerError as error:  # somebody else took the port meanwhile
            if "is taken" not in str(error) or attempt == _ATTEMPTS - 1:
                raise
        else:
            return TestServer(directory, process, credentials=bool(principals))
    raise AssertionError("unreachable")
