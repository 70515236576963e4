"""How a client finds the server and its credentials: what it is told, the environment, or a running `muxflow up`.

`muxflow up` leaves a `ConnectionFile` in its state directory; it names the server and every file of credentials.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from muxflow.bus.credentials import Principal
from muxflow.bus.settings import BusSettings
from muxflow.contracts import Role, decode_token
from muxflow.settings import CONFIG_VARIABLE, Settings, load

STATE_DIR_VARIABLE: Final = "MUXFLOW_STATE_DIR"
PRELOAD_VARIABLE: Final = "LD_PRELOAD"
CONNECTION_FILE: Final = "connection.json"


class DiscoveryError(Exception):
    """Nothing says where the server is, or what says so cannot be used. The message is one line with the fix."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """One file of credentials and what it is for."""

    role: Role
    bound_to: str | None = None
    """The tenant of a user, the node of a node; null for roles that are bound to nothing."""
    path: str
    """Relative to the state directory."""
    inbox_prefix: str


class ConnectionFile(msgspec.Struct, frozen=True, kw_only=True):
    """What ``connection.json`` in a state directory says. It outlives `muxflow up`, so that ports stay the same."""

    server: str
    """Such as ``nats://127.0.0.1:4222``."""
    node: str
    credentials: tuple[Credentials, ...]
    http_ports: dict[str, int] = {}
    """Of each service, when it was last started."""
    devices: dict[str, dict[str, str]] = {}
    """By UUID, what a program needs in its environment to be served on that GPU; none for GPUs that are declared."""
    beacons: dict[str, dict[str, str]] = {}
    """By UUID, what makes such a program tell offline work that it launches."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Where to connect, and as whom."""

    bus: BusSettings
    role: Role | None = None
    """None when nothing tells: the server will say what is allowed."""
    tenant: str | None = None
    """The tenant that the credentials are bound to."""


def state_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The state directory of `muxflow up` unless another is given: absolute, not necessarily there.

    ``$MUXFLOW_STATE_DIR``, else ``$XDG_STATE_HOME/muxflow``, else ``~/.local/state/muxflow``.
    """
    environ = os.environ if environ is None else environ
    if given := environ.get(STATE_DIR_VARIABLE):
        return Path(given).expanduser().absolute()
    if home := environ.get("XDG_STATE_HOME"):
        return Path(home).absolute() / "muxflow"
    return Path("~/.local/state/muxflow").expanduser()


def find(
    *,
    server: str | None = None,
    credentials: Path | None = None,
    directory: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Access:
    """Find the server and the credentials.

    What is given goes first; then ``MUXFLOW_BUS__…`` variables (or ``$MUXFLOW_CONFIG``); then the state directory, with
    its operator's credentials. Raises `DiscoveryError`, and `SettingsError` for variables that are wrong.
    """
    environ = os.environ if environ is None else environ
    configured = any(key == CONFIG_VARIABLE or key.startswith("MUXFLOW_BUS__") for key in environ)
    known: ConnectionFile | None = None
    where = (directory or state_dir(environ)).absolute()
    if directory is None and configured:
        access = Access(bus=load(Settings, environ=environ).bus)
    else:
        known = _read(where)
        access = _of(known, where) if known else Access(bus=BusSettings(servers=()))
    if server:
        access = msgspec.structs.replace(access, bus=msgspec.structs.replace(access.bus, servers=(server,)))
    if credentials:
        access = _as(access, credentials, known, where)
    if not access.bus.servers:
        raise DiscoveryError(f"no server known: {where} has no {CONNECTION_FILE}; start `muxflow up` or give --server")
    return access


def environment_on(
    gpu: str, *, directory: Path | None = None, environ: Mapping[str, str] | None = None, beacon: bool = True
) -> dict[str, str]:
    """What a program needs in its environment to be served on a GPU that `muxflow up` shares on this machine.

    With `beacon`, also what makes it tell offline work that it launches; what `environ` preloads stays, behind it.
    Raises `DiscoveryError`.
    """
    known = machine(directory=directory, environ=environ)
    if gpu not in known.devices:
        raise DiscoveryError(f"{gpu} is not shared by `muxflow up` on this machine, which is node {known.node}")
    variables = {**known.devices[gpu], **(known.beacons.get(gpu, {}) if beacon else {})}
    if PRELOAD_VARIABLE in variables:
        preloaded = (os.environ if environ is None else environ).get(PRELOAD_VARIABLE, "")
        variables[PRELOAD_VARIABLE] = _before(variables[PRELOAD_VARIABLE], preloaded)
    return variables


def _before(library: str, preloaded: str) -> str:
    """Put a library before the others of a list, once."""
    others = (each for each in re.split("[: ]", preloaded) if each and each != library)
    return os.pathsep.join((library, *others))


def machine(*, directory: Path | None = None, environ: Mapping[str, str] | None = None) -> ConnectionFile:
    """Read what `muxflow up` has told of this machine. Raises `DiscoveryError`."""
    where = (directory or state_dir(environ)).absolute()
    known = _read(where)
    if known is None:
        raise DiscoveryError(f"{where} has no {CONNECTION_FILE}: no `muxflow up` has run there")
    return known


def online_file(*, directory: Path | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """Where the monitor of `muxflow up` reads which online workloads there are, beside its settings."""
    return (directory or state_dir(environ)).absolute() / "monitor" / "online.toml"


def _read(directory: Path) -> ConnectionFile | None:
    path = directory / CONNECTION_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=ConnectionFile)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DiscoveryError(f"{path}: cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise DiscoveryError(f"{path}: {error}; start `muxflow up` again to write it anew") from None


def _of(known: ConnectionFile, directory: Path) -> Access:
    mine = next((entry for entry in known.credentials if entry.role is Role.OPERATOR), None)
    if mine is None:
        return Access(bus=BusSettings(servers=(known.server,)))
    bus = BusSettings(servers=(known.server,), credentials=str(directory / mine.path), inbox_prefix=mine.inbox_prefix)
    return Access(bus=bus, role=mine.role)


def _as(access: Access, path: Path, known: ConnectionFile | None, directory: Path) -> Access:
    """Take other credentials; the file itself does not say whose they are."""
    if not path.is_file():
        raise DiscoveryError(f"{path}: there is no such file of credentials")
    entries = known.credentials if known else ()
    entry = next((entry for entry in entries if (directory / entry.path).resolve() == path.resolve()), None)
    entry = entry or _by_name(path)
    bus = msgspec.structs.replace(
        access.bus,
        credentials=str(path),
        inbox_prefix=entry.inbox_prefix if entry else access.bus.inbox_prefix,
    )
    return Access(
        bus=bus,
        role=entry.role if entry else None,
        tenant=entry.bound_to if entry and entry.role is Role.USER else None,
    )


def _by_name(path: Path) -> Credentials | None:
    """Read role and binding off a file name such as ``user-default.nk``."""
    role, _, bound_to = path.stem.partition("-")
    try:
        principal = Principal(role=Role(role), bound_to=decode_token(bound_to) if bound_to else None)
    except ValueError:
        return None
    return Credentials(
        role=principal.role, bound_to=principal.bound_to, path=str(path), inbox_prefix=principal.inbox_prefix
    )
