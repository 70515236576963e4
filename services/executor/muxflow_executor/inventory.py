"""The node's GPUs, declared in a TOML file: ``[[gpu]]`` with ``uuid``, ``kind`` and ``memory``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from muxflow.contracts import Gpu
from muxflow.sizes import parse_size

_Name = Annotated[str, Meta(min_length=1, max_length=128)]


class InventoryError(ValueError):
    """The inventory is wrong. The message is one line: which file, which field, how to put it right."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    uuid: _Name
    kind: _Name
    memory: str


class _Inventory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    gpu: tuple[_Entry, ...] = ()


def read_inventory(path: Path) -> tuple[Gpu, ...]:
    """Read the file. Raises `InventoryError`."""
    try:
        with path.open("rb") as file:
            tree: dict[str, Any] = tomllib.load(file)
    except OSError as error:
        raise InventoryError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InventoryError(f"{path}: not valid TOML: {error}") from None
    try:
        entries = msgspec.convert(tree, _Inventory).gpu
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$.")
        field = place.rstrip("`") or "the file"
        raise InventoryError(
            f'{path}: {field}: {text}; each [[gpu]] has uuid, kind and memory, all text, such as memory = "16GiB"'
        ) from None
    if not entries:
        raise InventoryError(f"{path}: gpu: none is declared; add a [[gpu]] with uuid, kind and memory")
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
