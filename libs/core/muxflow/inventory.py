"""GPUs that are declared rather than found: ``--gpu T4:16GiB``, or a TOML file with one ``[[gpu]]`` table each."""

from __future__ import annotations

import tomllib
import uuid
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from muxflow import toml
from muxflow.contracts import Gpu
from muxflow.sizes import format_size, parse_size

EXAMPLE: Final = '[[gpu]]\nuuid = "GPU-1"\nkind = "T4"\nmemory = "16GiB"\n'

_HOW: Final = 'each [[gpu]] has uuid, kind and memory, all text, such as memory = "16GiB"'

_NAMESPACE: Final = uuid.UUID("6d757866-6c6f-7720-6770-752064656d6f")


class InventoryError(ValueError):
    """GPUs are declared wrongly. The message is one line."""


_Name = Annotated[str, Meta(min_length=1, max_length=128)]


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    uuid: _Name
    kind: _Name
    memory: str


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    gpu: tuple[_Entry, ...] = ()


def declare(wishes: tuple[str, ...], node: str) -> tuple[Gpu, ...]:
    """Make GPUs of ``KIND:MEMORY`` wishes. The same wishes on the same node have the same UUIDs each time."""
    gpus = []
    for index, wish in enumerate(wishes):
        kind, separator, memory = wish.rpartition(":")
        if not separator or not kind:
            raise InventoryError(f"--gpu {wish}: write KIND:MEMORY, such as T4:16GiB")
        try:
            memory_bytes = parse_size(memory)
        except ValueError as error:
            raise InventoryError(f"--gpu {wish}: {error}") from None
        name = f"GPU-{uuid.uuid5(_NAMESPACE, f'{node}/{kind}/{index}')}"
        gpus.append(Gpu(uuid=name, kind=kind, memory_bytes=memory_bytes, index=index))
    return tuple(gpus)


def load(path: Path) -> tuple[Gpu, ...]:
    """Read an inventory file. Raises `InventoryError`."""
    entries = _read(path).gpu
    if not entries:
        raise InventoryError(f"{path}: gpu: none is declared; {_HOW}")
    gpus: dict[str, Gpu] = {}
    for index, entry in enumerate(entries):
        try:
            memory_bytes = parse_size(entry.memory)
        except ValueError as error:
            raise InventoryError(f"{path}: gpu[{index}].memory: {error}") from None
        if memory_bytes < 1:
            raise InventoryError(f"{path}: gpu[{index}].memory: a GPU has more than none; write such as 16GiB")
        if entry.uuid in gpus:
            raise InventoryError(f"{path}: gpu[{index}].uuid: {entry.uuid!r} is there already; each GPU has its own")
        gpus[entry.uuid] = Gpu(uuid=entry.uuid, kind=entry.kind, memory_bytes=memory_bytes, index=index)
    return tuple(gpus.values())


def dump(gpus: tuple[Gpu, ...]) -> str:
    """Write an inventory file's text."""
    tables = ({"uuid": gpu.uuid, "kind": gpu.kind, "memory": f"{gpu.memory_bytes}B"} for gpu in gpus)
    return "\n".join(f"[[gpu]]\n{toml.pairs(table)}" for table in tables)


def describe(gpus: tuple[Gpu, ...]) -> tuple[str, ...]:
    """Say for each GPU what it is, for people."""
    return tuple(f"{gpu.kind} {format_size(gpu.memory_bytes)}" for gpu in gpus)


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as file:
            tree = tomllib.load(file)
    except OSError as error:
        raise InventoryError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InventoryError(f"{path}: not valid TOML: {error}") from None
    try:
        return msgspec.convert(tree, _File)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$.")
        field = place.rstrip("`") or "the file"
        raise InventoryError(f"{path}: {field}: {text[0].lower()}{text[1:]}; {_HOW}") from None
