"""What the program and its children print, kept in two bounded segments."""

from __future__ import annotations

import contextlib
import os
from typing import Final

SEGMENT: Final = "output."
"""A segment's name begins so; the logical offset of its first byte follows, so that readers see what was dropped."""

_READ_BYTES: Final = 65_536


class Output:
    """A pipe, and the segments in the current directory into which it is moved."""

    def __init__(self, limit_bytes: int) -> None:
        self._segment_bytes = max(1, limit_bytes // 2)
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self.open = True
        self._offset = 0
        self._segment_offset = 0
        self._segments: list[str] = []
        self._fd: int | None = None

    def leave_to_program(self) -> None:
        """Close our copy of the end that the program writes to: only so can its end be seen."""
        os.close(self.write_end)

    def take(self) -> bool:
        """Move one piece; False when there is none now."""
        try:
            piece = os.read(self.read_end, _READ_BYTES)
        except BlockingIOError:
            return False
        if not piece:
            self.open = False
            os.close(self.read_end)
            return False
        while piece:
            taken = self._write(piece)
            self._offset += taken
            piece = piece[taken:]
        return True

    def drain(self) -> None:
        """Move all that is left."""
        while self.open and self.take():
            pass

    def _write(self, piece: bytes) -> int:
        try:
            fd = self._segment()
            room = self._segment_bytes - (self._offset - self._segment_offset)
            return os.write(fd, piece[:room])
        except OSError:  # a full disk costs output, never the program: a new segment will show the gap
            self._end_segment()
            return len(piece)

    def _segment(self) -> int:
        if self._fd is not None and self._offset - self._segment_offset < self._segment_bytes:
            return self._fd
        self._end_segment()
        while len(self._segments) > 1:
            with contextlib.suppress(OSError):
                os.unlink(self._segments.pop(0))
        name = f"{SEGMENT}{self._offset:016d}"
        self._fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._segments.append(name)
        self._segment_offset = self._offset
        return self._fd

    def _end_segment(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
