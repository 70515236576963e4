"""A whole MuxFlow in a temporary directory: real servers, real services as processes, made to be broken.

The command `muxflow up` runs one machine. A world can also have three servers, several nodes, and a network between
them that can be cut, and it restarts nothing by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

import msgspec

from muxflow.bus import Bus, BusSettings
from muxflow.bus.credentials import Principal, ensure
from muxflow.bus.embedded import EmbeddedServer, free_port
from muxflow.bus.provision import provision
from muxflow.bus.server_config import Cluster, Server, render
from muxflow.contracts import Role
from proxy import Proxy

SUPPORT = Path(__file__).parent
WITNESS = SUPPORT / "witness.py"

LEASES = {
    "MUXFLOW_LEASE__NODE_S": "2",
    "MUXFLOW_LEASE__NODE_GRACE_S": "0.5",
    "MUXFLOW_LEASE__NODE_MARGIN_S": "0.5",
    "MUXFLOW_LEASE__LEADER_S": "1",
}
"""T is 2 s in tests."""

_ALONE = (Role.PROVISIONER, Role.SCHEDULER, Role.PROFILER, Role.PREDICTOR, Role.OPERATOR, Role.OBSERVER)
"""Roles that are bound to nothing."""


class Service:
    """One service process; it can be killed and started again."""

    def __init__(self, name: str, module: str, env: Mapping[str, str], log: Path, python: str = sys.executable) -> None:
        self.name = name
        self.log = log
        self._argv = [python, "-m", module]
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def child(self, module: str) -> int | None:
        """Process id of the child that runs a module; None while there is none."""
        for children in Path(f"/proc/{self.pid}/task").glob("*/children"):
            for pid in children.read_text().split():
                if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        return None

    def start(self) -> None:
        assert not self.running
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                env={**os.environ, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(number)
            self._process.wait(20)


class World:
    """Servers, one scheduler or more, nodes. Use `running`."""

    def __init__(self, root: Path, *, servers: int = 1, nodes: Mapping[str, int], env: Mapping[str, str]) -> None:
        self.root = root
        self.env = {**LEASES, **env}
        self.nodes = nodes
        self.credentials = root / "credentials"
        self.principals = (
            *(Principal(role=role) for role in _ALONE),
            Principal(role=Role.USER, bound_to="default"),
            *(Principal(role=Role.NODE, bound_to=node) for node in nodes),
        )
        self.servers = self._make_servers(servers)
        self.proxies: dict[str, Proxy] = {}
        self.services: dict[str, Service] = {}

    def _make_servers(self, count: int) -> list[EmbeddedServer]:
        keys = ensure(self.credentials, self.principals)
        ports = [free_port() for _ in range(count)]
        route_ports = [free_port() for _ in range(count)]
        made = []
        for number in range(count):
            cluster = None
            if count > 1:
                cluster = Cluster(
                    name="world",
                    host="127.0.0.1",
                    port=route_ports[number],
                    routes=tuple(f"nats-route://127.0.0.1:{port}" for port in route_ports),
                )
            server = Server(
                name=f"server-{number}",
                port=ports[number],
                store_dir=str(self.root / f"store-{number}"),
                cluster=cluster,
            )
            config = self.root / f"server-{number}.conf"
            config.write_text(render(server, keys))
            made.append(
                EmbeddedServer(config, host="127.0.0.1", port=ports[number], log=self.root / f"server-{number}.log")
            )
        return made

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(server.url for server in self.servers)

    def settings(self, principal: Principal, urls: Iterable[str] | None = None) -> BusSettings:
        return BusSettings(
            servers=tuple(urls or self.urls),
            credentials=str(principal.seed_path(self.credentials)),
            inbox_prefix=principal.inbox_prefix,
        )

    async def connect(self, principal: Principal) -> Bus:
        return await Bus.connect(self.settings(principal), source=f"test-{principal.name}")

    async def start_servers(self) -> None:
        await asyncio.gather(*(_start_any_time(server) for server in self.servers))
        async with await self.connect(Principal(role=Role.PROVISIONER)) as bus:
            await provision(
                bus,
                replicas=len(self.servers),
                ttl_s={
                    "leader": float(self.env["MUXFLOW_LEASE__LEADER_S"]),
                    "node_leases": float(self.env["MUXFLOW_LEASE__NODE_S"]),
                },
            )

    def add_scheduler(self, name: str = "scheduler", env: Mapping[str, str] | None = None) -> Service:
        principal = Principal(role=Role.SCHEDULER)
        return self._add(name, "muxflow_scheduler", {**self._bus_env(principal, self.urls), **(env or {})})

    async def add_executor(
        self, node: str, env: Mapping[str, str] | None = None, *, python: str = sys.executable
    ) -> Service:
        """The node's executor, behind a proxy of its own to the first server (three servers: to all of them)."""
        urls: tuple[str, ...] = self.urls
        if len(self.servers) == 1:
            proxy = self.proxies[node] = Proxy("127.0.0.1", self.servers[0].port)
            await proxy.start()
            urls = (proxy.url,)
        inventory = self.root / f"{node}-inventory.toml"
        inventory.write_text(
            "".join(
                f'[[gpu]]\nuuid = "GPU-{node}-{number}"\nkind = "T4"\nmemory = "16GiB"\n'
                for number in range(self.nodes[node])
            )
        )
        return self._add(
            node,
            "muxflow_executor",
            {
                **self._bus_env(Principal(role=Role.NODE, bound_to=node), urls),
                "MUXFLOW_EXECUTOR__NODE": node,
                "MUXFLOW_EXECUTOR__INVENTORY": str(inventory),
                "MUXFLOW_EXECUTOR__STATE_DIR": str(self.root / f"{node}-state"),
                **(env or {}),
            },
            python,
        )

    def state_dir(self, node: str) -> Path:
        return self.root / f"{node}-state"

    def shims(self, node: str) -> list[int]:
        """Process ids of the shims that have an attempt on a node."""
        found = []
        for attempt in (self.state_dir(node) / "attempts").glob("*"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                shim = json.loads((attempt / "shim.json").read_bytes())
                if not (attempt / "exit.json").exists() and Path(f"/proc/{shim['pid']}").exists():
                    found.append(int(shim["pid"]))
        return found

    def _bus_env(self, principal: Principal, urls: Iterable[str]) -> dict[str, str]:
        settings = self.settings(principal, urls)
        return {
            "MUXFLOW_BUS__SERVERS": msgspec.json.encode(settings.servers).decode(),
            "MUXFLOW_BUS__CREDENTIALS": str(settings.credentials),
            "MUXFLOW_BUS__INBOX_PREFIX": settings.inbox_prefix,
            **self.env,
        }

    def _add(self, name: str, module: str, env: Mapping[str, str], python: str = sys.executable) -> Service:
        service = self.services[name] = Service(name, module, env, self.root / f"{name}.log", python)
        service.start()
        return service

    async def stop(self) -> None:
        for service in self.services.values():  # in threads: the proxies live in this loop
            with contextlib.suppress(subprocess.TimeoutExpired):
                stop = signal.SIGINT if service.name in self.nodes else signal.SIGTERM
                await asyncio.to_thread(service.kill, stop)
            await asyncio.to_thread(service.kill)
        for proxy in self.proxies.values():
            await proxy.stop()
        for server in self.servers:
            await server.stop()

    def left_behind(self) -> list[str]:
        """Command lines of processes that have to do with this world, services and servers included."""
        mark = str(self.root).encode()
        return [command.decode(errors="replace") for _, command in _processes() if mark in command]


@contextlib.asynccontextmanager
async def running(
    root: Path, *, servers: int = 1, nodes: Mapping[str, int], env: Mapping[str, str] | None = None
) -> AsyncIterator[World]:
    """Start a world with its scheduler and all nodes; stop it, whatever happened."""
    world = World(root, servers=servers, nodes=nodes, env=env or {})
    try:
        await world.start_servers()
        world.add_scheduler()
        for node in nodes:
            await world.add_executor(node)
        yield world
    finally:
        await world.stop()


async def _start_any_time(server: EmbeddedServer) -> None:
    await server.start()


def _processes() -> Iterable[tuple[int, bytes]]:
    """Command line and environment mark of every process of ours."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ")
