"""The NATS server of one machine: its users, its configuration, its streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

from muxflow.bus import Bus, BusError, BusSettings
from muxflow.bus import credentials as nkeys
from muxflow.bus.credentials import Principal
from muxflow.bus.embedded import ServerError, command, explain
from muxflow.bus.provision import provision
from muxflow.bus.server_config import Server, render
from muxflow.contracts import Role
from muxflow.contracts.catalogue import BUCKET_LEADER, BUCKET_NODE_LEASES
from muxflow.discovery import Credentials
from muxflow.settings import LeaseSettings
from muxflow.supervisor import loopback_http
from muxflow.supervisor.processes import Program, Readiness
from muxflow.supervisor.services import SERVICES
from muxflow.supervisor.state import StateDirectory, write_private
from muxflow.supervisor.storage import Storage

NAME: Final = "server"
_CONNECT_S: Final = 10.0


def prepare(
    state: StateDirectory, *, node: str, tenants: Sequence[str], port: int, monitor_port: int, store: Storage
) -> tuple[Credentials, ...]:
    """Write credentials, those that are there already are kept, and the server's configuration.

    Raises OSError when a file cannot be written, ValueError for a file of credentials that holds none.
    """
    principals = (
        *(Principal(role=role) for role in (Role.PROVISIONER, Role.OPERATOR, Role.OBSERVER)),
        *(Principal(role=entry.role) for entry in SERVICES if entry.role is not Role.NODE),
        Principal(role=Role.NODE, bound_to=node),
        *(Principal(role=Role.USER, bound_to=tenant) for tenant in tenants),
    )
    public_keys = nkeys.ensure(state.credentials, principals)
    server = Server(
        name="muxflow",
        port=port,
        store_dir=str(state.store),
        max_file_store_bytes=store.max_bytes,
        monitor=f"127.0.0.1:{monitor_port}",
    )
    write_private(state.server_config, render(server, public_keys).encode())
    return tuple(
        Credentials(
            role=principal.role,
            bound_to=principal.bound_to,
            path=str(principal.seed_path(state.credentials).relative_to(state.root)),
            inbox_prefix=principal.inbox_prefix,
        )
        for principal in principals
    )


def program(state: StateDirectory, port: int) -> Program:
    """Say how the server is run. Raises `ServerError` when there is no binary."""
    return Program(
        name=NAME,
        argv=tuple(command(state.server_config)),
        port=port,
        readiness=Readiness.NATS,
        log=state.log(NAME),
    )


def last_words(log: Path) -> str:
    """Say from its log why the server ended."""
    return explain(log.read_text(errors="replace"))


async def stuck(monitor_port: int) -> str | None:
    """Why the server runs and does not store, as far as it says so itself; None if it stores, or does not answer."""
    try:
        status, body = await loopback_http.get(monitor_port, "/healthz")
    except OSError:
        return None
    if status == HTTPStatus.OK or "write error" not in body:
        return None
    try:
        reason = str(json.loads(body)["error"])
    except (KeyError, TypeError, ValueError):
        reason = body
    return "the disk is full" if "no space left" in reason or "quota" in reason else reason


async def make_streams(
    state: StateDirectory, url: str, credentials: Sequence[Credentials], lease: LeaseSettings, store: Storage
) -> None:
    """Make streams, durables and buckets, as often as you like. Raises `ServerError`."""
    mine = next(each for each in credentials if each.role is Role.PROVISIONER)
    settings = BusSettings(servers=(url,), credentials=str(state.root / mine.path), inbox_prefix=mine.inbox_prefix)
    try:
        async with asyncio.timeout(_CONNECT_S):
            bus = await Bus.connect(settings, source="up")
        async with bus:
            await provision(
                bus,
                ttl_s={BUCKET_LEADER.name: lease.leader_s, BUCKET_NODE_LEASES.name: lease.node_s},
                bytes_scale=store.streams_scale,
            )
    except TimeoutError:
        raise ServerError(f"{url} does not let us in: somebody else's server?") from None
    except BusError as error:
        raise ServerError(f"{url} cannot keep what it must: {error}") from None
