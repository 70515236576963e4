"""Room on the disk of the server's store: how much of it the store may take, and whether any is left.

nats-server does not come back from a full disk by itself: the stream whose write failed refuses everything until the
server is restarted (2.15). So the store is bounded below what the disk has, and a server that somebody else's files
stopped is restarted when there is room again.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from muxflow.contracts.catalogue import GIB, MIB, STREAMS
from muxflow.sizes import format_size

STORE_MAX_BYTES: Final = 64 * GIB
STORE_MIN_BYTES: Final = 32 * MIB
"""With less, not even small streams have room beside the job records."""
RESERVE_MAX_BYTES: Final = GIB
"""Left to logs and jobs' output: a tenth of the disk, and at most this."""
PROBE_BYTES: Final = 8 * MIB


class StorageError(Exception):
    """The disk has no room for a store. The message is one line with the fix."""


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """What the server's store may take."""

    max_bytes: int
    streams_scale: float
    """Multiplies the bounds of streams, so that they take half of it at most; the rest is for records and files."""


def plan(store: Path, before: Storage | None) -> Storage:
    """Size a store for its disk; what it holds already counts as free.

    It never becomes smaller than it was `before`: the server refuses streams that are bounded above
    the store, and their bounds are lowered only after it has started.
    Raises OSError and `StorageError`.
    """
    disk = shutil.disk_usage(store)
    reserve = min(RESERVE_MAX_BYTES, disk.total // 10)
    room = disk.free + _held(store) - reserve
    if room < STORE_MIN_BYTES:
        raise StorageError(
            f"{store}: {format_size(disk.free)} are free on its disk, and the server's store needs "
            f"{format_size(STORE_MIN_BYTES + reserve)}; free some space, or give another directory with --state-dir"
        )
    if before is not None and before.max_bytes > room:
        return before
    return size(min(room, STORE_MAX_BYTES))


def size(max_bytes: int) -> Storage:
    """Share a store between streams and everything else; in powers of two, so that bounds seldom change."""
    scale = 1.0
    while sum(stream.max_bytes for stream in STREAMS if stream.storage == "file") * scale > max_bytes / 2:
        scale /= 2
    return Storage(max_bytes=max_bytes, streams_scale=scale)


def has_room(store: Path) -> bool:
    """Whether a file of some size can be written there; asks by trying, which knows of quotas too."""
    probe = store / ".room"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, PROBE_BYTES)
        finally:
            os.close(descriptor)
            probe.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _held(store: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in store.rglob("*") if path.is_file())
