"""What one machine needs on disk before anything runs: settings, credentials, inventory, the server's configuration."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from muxflow import inventory, toml
from muxflow.discovery import ConnectionFile, Credentials
from muxflow.settings import LeaseSettings, Settings, SettingsError, load
from muxflow.supervisor import hardware, mps, server, storage
from muxflow.supervisor.hardware import Declared, Hardware, HardwareError, Present, Real
from muxflow.supervisor.processes import free_port
from muxflow.supervisor.services import SERVICES, ServiceEntry
from muxflow.supervisor.state import StateDirectory, write_private
from muxflow.supervisor.storage import Storage

_HEADER: Final = "# Written by `muxflow up` at each start; --set section.key=value changes it.\n\n"
_SECTIONS: Final = frozenset(
    {*(field.encode_name for field in msgspec.structs.fields(Settings)), *(entry.name for entry in SERVICES)}
)
"""What there is to set here; settings know sections of services that do not exist yet."""

_HAVE_GPUS: Final = (
    "no GPUs: {why}. Simulate some:\n\n"
    "  muxflow up --simulate T4 --simulate A100\n\n"
    "or declare each by kind and memory, to try jobs without any:\n\n"
    "  muxflow up --gpu T4:16GiB --gpu A100:40GiB\n\n"
    "or all of them in a file, for `muxflow up --gpus FILE`:\n\n" + textwrap.indent(inventory.EXAMPLE.strip(), "  ")
)


class InstallationError(Exception):
    """What was asked for cannot be run. The message is one line with the fix."""


class NoGpusError(InstallationError):
    """There are no GPUs. The message has several lines: it shows how to have some."""

    def __init__(self, why: str) -> None:
        super().__init__(_HAVE_GPUS.format(why=why))


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants to run."""

    state_dir: Path
    node: str
    hardware: Hardware | None = None
    """None takes that of the last time; the first time, the GPUs that are found."""
    port: int | None = None
    """Port of the server; None takes that of the last time, or a free one."""
    overrides: tuple[tuple[tuple[str, ...], Any], ...] = ()
    """Path and value of settings of the services, such as ``(("lease", "node_s"), 2)``."""


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What is on disk now."""

    node: str
    present: Present
    port: int
    monitor_port: int
    """Where the server tells how it is, on loopback."""
    store: Storage
    credentials: tuple[Credentials, ...]
    lease: LeaseSettings
    http_ports: dict[str, int]
    """Where services served the last time."""

    @property
    def url(self) -> str:
        """Where the server will be."""
        return f"nats://127.0.0.1:{self.port}"

    def connection(self, http_ports: dict[str, int]) -> ConnectionFile:
        """Say it to clients."""
        return ConnectionFile(
            server=self.url,
            node=self.node,
            credentials=self.credentials,
            http_ports=http_ports,
            devices={gpu.uuid: mps.client(gpu, self.present) for gpu in self.present.watched},
            beacons={gpu.uuid: hardware.beacon(gpu, self.present) for gpu in self.present.watched},
        )


@contextmanager
def gpus_of(plan: Plan, state: StateDirectory) -> Iterator[Present]:
    """Have the GPUs there for the block that the plan names; else those of the last time; else those that are found.

    Raises `HardwareError`, and `NoGpusError` if there are none and nobody said which.
    """
    asked = plan.hardware or state.read_hardware()
    with ExitStack() as stack:
        try:
            present = stack.enter_context(hardware.present(asked or Real(), state.root))
        except HardwareError as error:
            if asked is not None:
                raise
            raise NoGpusError(str(error)) from None
        yield present


def install(plan: Plan, state: StateDirectory, present: Present) -> Installation:
    """Write everything; keys, ports and GPUs of the last time are kept.

    Raises `InstallationError`, `SettingsError`, `StorageError`, and OSError when a file cannot be written.
    """
    before = state.read_connection()
    port = _port(plan, before)
    write_private(state.settings, (_HEADER + toml.dump(_settings(plan, state, present, port))).encode())
    try:
        settings = load(Settings, state.settings)
    except SettingsError as error:
        raise InstallationError(blame(str(error), plan, state)) from None
    store = storage.plan(state.store, state.read_storage())
    write_private(state.storage, msgspec.json.encode(store))
    monitor_port = free_port()
    credentials = server.prepare(
        state,
        node=plan.node,
        tenants=tuple(settings.tenants),
        port=port,
        monitor_port=monitor_port,
        store=store,
    )
    if isinstance(present.hardware, Declared):
        write_private(state.inventory, inventory.dump(present.gpus).encode())
    write_private(state.hardware, msgspec.json.encode(present.hardware))
    return Installation(
        node=plan.node,
        present=present,
        port=port,
        monitor_port=monitor_port,
        store=store,
        credentials=credentials,
        lease=settings.lease,
        http_ports=before.http_ports if before else {},
    )


def blame(text: str, plan: Plan, state: StateDirectory) -> str:
    """Put the ``--set`` that was given in the place of the settings file that it was written to."""
    for keys, value in plan.overrides:
        written = f"{state.settings}: {'.'.join(keys)}"
        if text.startswith(written):
            return f"{as_given(keys, value)}{text.removeprefix(written)}"
    return text


def as_given(keys: tuple[str, ...], value: Any) -> str:
    """Write an override as on the command line."""
    return f"--set {'.'.join(keys)}={value if isinstance(value, str) else msgspec.json.encode(value).decode()}"


def _port(plan: Plan, before: ConnectionFile | None) -> int:
    if plan.port is None:
        return free_port(int(before.server.rpartition(":")[2]) if before else 0)
    if free_port(plan.port) != plan.port:
        raise InstallationError(f"port {plan.port} is taken; give another one with --port, or none")
    return plan.port


def _settings(plan: Plan, state: StateDirectory, present: Present, port: int) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "bus": {"servers": [f"nats://127.0.0.1:{port}"]},
        "tenants": {"default": {}},
        **{entry.name: _facts(entry, plan, state, present) for entry in SERVICES if entry.told},
    }
    for keys, value in plan.overrides:
        if keys[0] not in _SECTIONS:
            raise InstallationError(f"{as_given(keys, value)}: there is no section [{keys[0]}]; {_meant(keys[0])}")
        try:
            toml.assign(tree, keys, value)
        except ValueError as error:
            raise InstallationError(f"--set {error}") from None
    return tree


def _facts(entry: ServiceEntry, plan: Plan, state: StateDirectory, present: Present) -> dict[str, str]:
    """What a service is told of its machine."""
    facts = {
        "node": plan.node,
        "state_dir": str(state.own(entry.name)),
        "run_dir": str(present.run_dir) if present.run_dir else None,
        "inventory": str(state.inventory) if isinstance(present.hardware, Declared) else None,
    }
    return {key: value for key in entry.told if (value := facts[key]) is not None}


def _meant(section: str) -> str:
    close = difflib.get_close_matches(section, sorted(_SECTIONS), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(_SECTIONS))}"
