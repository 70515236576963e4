"""Reading what a job has printed, while it runs and afterwards."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from muxflow_executor.shim.output import SEGMENT


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the output, in logical bytes since the attempt began."""

    data: bytes
    offset: int
    """Where `data` begins; later than asked for when older output was dropped."""
    end: int
    """Where the next read goes on."""


def read_output(directory: Path, *, offset: int | None, limit_bytes: int) -> Piece:
    """Read at most `limit_bytes` from `offset` on; None means the last ones."""
    segments = _segments(directory)
    written = segments[-1][0] + segments[-1][1] if segments else 0
    start = max(0, written - limit_bytes) if offset is None else offset
    for base, size, path in segments:
        if base + size <= start:
            continue
        start = max(start, base)
        data = bytearray()
        for follower_base, _, follower in [(base, size, path), *_after(segments, base)]:
            if follower_base > start + len(data) or len(data) >= limit_bytes:
                break  # a gap where the disk was full: the next read begins behind it
            data += _read(follower, max(0, start - follower_base), limit_bytes - len(data))
        return Piece(data=bytes(data), offset=start, end=start + len(data))
    return Piece(data=b"", offset=written, end=written)


def _after(segments: list[tuple[int, int, Path]], base: int) -> list[tuple[int, int, Path]]:
    return [segment for segment in segments if segment[0] > base]


def _segments(directory: Path) -> list[tuple[int, int, Path]]:
    """Offset, size and path of each segment that holds something, in order. The shim may drop one at any time."""
    found = []
    for path in directory.glob(f"{SEGMENT}*"):
        number = path.name.removeprefix(SEGMENT)
        with contextlib.suppress(OSError):
            if number.isdigit() and (size := path.stat().st_size):
                found.append((int(number), size, path))
    return sorted(found)


def _read(path: Path, position: int, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(limit_bytes)
    except FileNotFoundError:
        return b""
