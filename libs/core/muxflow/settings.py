"""Settings of every service: one TOML file, overridden by the environment, checked against one struct.

The file has a section per concern (``[bus]``, ``[log]``, ``[http]``, ``[tenants.<name>]``) and one per service. Each
service reads the common sections and its own; a section or key that nobody knows is an error that names it. An
environment variable ``MUXFLOW_<SECTION>__<KEY>`` overrides one key: ``MUXFLOW_EXECUTOR__LEASE_S=2``. Lists and tables
are given as JSON.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from muxflow.bus.settings import BusSettings

SERVICES: Final = ("scheduler", "executor", "monitor", "evictor", "profiler", "predictor", "kube")
"""Services that may have a section; each reads only its own."""

CONFIG_VARIABLE: Final = "MUXFLOW_CONFIG"
_PREFIX: Final = "MUXFLOW_"


class SettingsError(ValueError):
    """A settings file or variable is wrong. The message is one line: where, what, and how to put it right."""


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How services log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, JSON lines elsewhere."""


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where ``/healthz``, ``/readyz`` and ``/metrics`` are served."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    """0 takes any free port (it is logged); null serves nothing."""


class LeaseSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long silence may last. The same everywhere: provisioning, scheduler and executors read them."""

    node_s: Annotated[float, Meta(ge=0.5, le=3600)] = 120.0
    """T: an executor that could not renew its lease for this long stops its offline jobs."""
    node_grace_s: Annotated[float, Meta(ge=0, le=600)] = 30.0
    """Longest time between SIGTERM and SIGKILL when a lease has ended."""
    node_margin_s: Annotated[float, Meta(ge=0.1, le=600)] = 10.0
    """What the scheduler waits beyond T and grace: clocks that run at different speeds, slow kills."""
    leader_s: Annotated[float, Meta(ge=0.5, le=60)] = 3.0
    """A leader that could not renew for this long has lost its term."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tenant that may submit jobs."""

    description: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all services share; a service's own settings derive from this and add one section."""

    bus: BusSettings = BusSettings()
    log: LogSettings = LogSettings()
    http: HttpSettings = HttpSettings()
    lease: LeaseSettings = LeaseSettings()
    tenants: dict[str, Tenant] = msgspec.field(default_factory=lambda: {"default": Tenant()})


S = TypeVar("S", bound=Settings)


def load(kind: type[S], path: Path | None = None, environ: Mapping[str, str] | None = None) -> S:
    """Read settings of one service.

    `path` defaults to ``$MUXFLOW_CONFIG``; without either, everything has its default. Raises `SettingsError`.
    """
    environ = os.environ if environ is None else environ
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    tree = _read_file(path) if path else {}
    origins = _overlay(tree, environ, known=_sections(kind))
    _drop_other_services(tree, kind, path)
    try:
        return msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_explain(error, kind, path, origins)) from None


def _sections(kind: type[Settings]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None


def _overlay(tree: dict[str, Any], environ: Mapping[str, str], *, known: set[str]) -> dict[str, str]:
    """Put variables into the tree; returns which path came from which variable."""
    origins = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(_PREFIX) or "__" not in variable:
            continue
        keys = [key.lower() for key in variable.removeprefix(_PREFIX).split("__")]
        if keys[0] not in known:
            if keys[0] in SERVICES:
                continue
            raise SettingsError(f"{variable}: there is no section [{keys[0]}]{_did_you_mean(keys[0], known)}")
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise SettingsError(f"{variable}: {key} is not a table")
        node[keys[-1]] = _parse_variable(variable, text)
        origins["$." + ".".join(keys)] = variable
    return origins


def _parse_variable(variable: str, text: str) -> Any:
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return msgspec.json.decode(text.encode())
    except msgspec.DecodeError as error:
        raise SettingsError(f"{variable}: looks like JSON and is not: {error}") from None


def _drop_other_services(tree: dict[str, Any], kind: type[Settings], path: Path | None) -> None:
    known = _sections(kind)
    for section in list(tree):
        if section in known:
            continue
        if section not in SERVICES:
            where = f"{path}: " if path else ""
            raise SettingsError(
                f"{where}there is no section [{section}]{_did_you_mean(section, known | set(SERVICES))}"
            )
        del tree[section]


def _explain(
    error: msgspec.ValidationError, kind: type[Settings], path: Path | None, origins: Mapping[str, str]
) -> str:
    text, _, at = str(error).partition(" - at `")
    place = at.rstrip("`") or "$"
    if unknown := re.search(r"unknown field `(.+?)`", text):
        place = f"{place}.{unknown[1]}"
        text = f"unknown key{_did_you_mean(unknown[1], _keys_beside(kind, place))}"
    where = origins.get(place) or (str(path) if path else "settings")
    return f"{where}: {place.removeprefix('$.')}: {text[0].lower()}{text[1:]}"


def _keys_beside(kind: type[Any], place: str) -> set[str]:
    """Names of the keys that the struct which holds `place` does know."""
    for key in place.removeprefix("$.").split(".")[:-1]:
        inner = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}.get(key)
        if not (isinstance(inner, type) and issubclass(inner, msgspec.Struct)):
            return set()
        kind = inner
    return {field.encode_name for field in msgspec.structs.fields(kind)}


def _did_you_mean(word: str, known: set[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(sorted(known))}" if known else ""
