"""GPUs that are declared rather than found: ``--gpu T4:16GiB``, or a TOML file with one ``[[gpu]]`` table each."""

from __future__ import annotations

import tomllib
import uuid
from pathlib import Path
from typing import Any, Final

import msgspec

from muxflow.contracts import Gpu
from muxflow.sizes import format_size, parse_size
from muxflow.supervisor import toml

EXAMPLE: Final = '[[gpu]]\nuuid = "GPU-1"\nkind = "T4"\nmemory = "16GiB"\n'

_NAMESPACE: Final = uuid.UUID("6d757866-6c6f-7720-6770-752064656d6f")


class InventoryError(ValueError):
    """GPUs are declared wrongly. The message is one line."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    uuid: str
    kind: str
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
    try:
        with path.open("rb") as file:
            tree: dict[str, Any] = tomllib.load(file)
        entries = msgspec.convert(tree, _File).gpu
        gpus = tuple(
            Gpu(uuid=entry.uuid, kind=entry.kind, memory_bytes=parse_size(entry.memory), index=index)
            for index, entry in enumerate(entries)
        )
    except OSError as error:
        raise InventoryError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # not TOML, not UTF-8, not this shape, not a size
        raise InventoryError(f"{path}: {error}; a GPU is written as {EXAMPLE.strip()!r}") from None
    if not gpus:
        raise InventoryError(f"{path}: declares no GPU; one is written as {EXAMPLE.strip()!r}")
    if len({gpu.uuid for gpu in gpus}) < len(gpus):
        raise InventoryError(f"{path}: two GPUs have the same uuid")
    return gpus


def dump(gpus: tuple[Gpu, ...]) -> str:
    """Write an inventory file's text."""
    tables = ({"uuid": gpu.uuid, "kind": gpu.kind, "memory": f"{gpu.memory_bytes}B"} for gpu in gpus)
    return "\n".join(f"[[gpu]]\n{toml.pairs(table)}" for table in tables)


def describe(gpus: tuple[Gpu, ...]) -> tuple[str, ...]:
    """Say for each GPU what it is, for people."""
    return tuple(f"{gpu.kind} {format_size(gpu.memory_bytes)}" for gpu in gpus)
