"""Which attempts on a GPU have broken a rule: the monitor's word to the evictor, beside the device page.

One file of JSON, replaced as a whole, so that it needs no bus. The device page has no room for it: a page says how the
device is, and whoever is stopped for a breach may be one of many there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from muxflow.contracts import Attempt
from muxflow.contracts.event import TimeNs
from muxflow_device.rundir import DeviceDirectory

log = structlog.get_logger()

_BYTES_MAX: Final = 1 << 20
"""More than the monitor ever writes."""


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that is to be stopped, and not to be tried again."""

    attempt: Attempt
    cause: Annotated[str, Meta(max_length=4096)]
    """What it has done, in words for people."""
    decided_ns: TimeNs
    """When that was found, by the wall clock."""


def write_breaches(directory: DeviceDirectory, breaches: Iterable[Broken]) -> None:
    """Say which attempts have broken a rule, of those that are there. Raises OSError."""
    path = directory.breaches
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(msgspec.json.encode(tuple(breaches)))
    draft.replace(path)


class Breaches:
    """The evictor's eyes on one such file: cheap to ask again and again."""

    def __init__(self, directory: DeviceDirectory) -> None:
        self._path = directory.breaches
        self._seen: tuple[int, int] | None = None
        self._found: tuple[Broken, ...] = ()

    def look(self) -> tuple[Broken, ...]:
        """Give what it says now; nothing when there is none, or none that can be read."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - fifty times a second: a Path costs more
        except OSError:
            self._seen, self._found = None, ()
            return ()
        if (seen := (found.st_ino, found.st_mtime_ns)) != self._seen:
            self._seen = seen
            self._found = _read(self._path)
        return self._found


def _read(path: Path) -> tuple[Broken, ...]:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_BYTES_MAX), type=tuple[Broken, ...])
    except (OSError, msgspec.DecodeError) as error:
        log.warning("breaches cannot be read", path=str(path), error=str(error))
        return ()
