"""The files of pages: how they come into being, and how their writers and readers open them.

A page gets its name when it is whole, and keeps its inode from then on: whoever has mapped it goes on seeing it, also
after its writer was started anew. Its bytes are all written at once, because a hole that a full tmpfs cannot fill kills
whoever stores into it. A page that its readers map is read-only even for its owner: neither a redirection nor a
truncation goes astray into it, which would kill all who have mapped it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import stat
from collections.abc import Iterator
from ctypes import Structure, addressof, sizeof
from pathlib import Path
from typing import Final, Generic, Self, TypeVar

from muxflow_device.pages.errors import PageError, PageInUseError, PageLostError
from muxflow_device.pages.layout import MAGIC, PAGE_BYTES, UUID_BYTES, VERSION, Header, PageKind

READ_ONLY: Final = 0o444
SHARED: Final = 0o644
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
"""Whatever lies at the name of a page, a FIFO or a link too, must not hold a service up or lead it astray."""

L = TypeVar("L", bound=Structure)


def create(
    path: Path, content: Structure, *, kind: PageKind, uuid: str, mode: int, owner: tuple[int, int] | None
) -> None:
    """Make a page, unless there is a sound one of this GPU already; `owner` is its user and group, None: ours.

    Raises OSError, and ValueError for a UUID that does not fit.
    """
    size = PAGE_BYTES[kind]
    if len(uuid.encode()) >= UUID_BYTES:
        raise ValueError(f"{uuid!r} is longer than the UUID of a GPU can be")
    with contextlib.suppress(PageError, FileNotFoundError):
        if read_header(path, kind).uuid == uuid.encode():
            return
    raw = bytearray(bytes(content).ljust(size, b"\0"))
    header = Header(magic=0, kind=kind, version=VERSION, size_bytes=size, uuid=uuid.encode())
    raw[: sizeof(Header)] = bytes(header)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)  # whatever the umask says
        if owner is not None:
            os.fchown(fd, *owner)
        _write_whole(fd, raw)
        os.pwrite(fd, MAGIC.to_bytes(4, "little"), 0)
        unfinished.rename(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def read_header(path: Path, kind: PageKind) -> Header:
    """Look at a page's header. Raises PageError when it is no such page, FileNotFoundError, OSError."""
    fd = os.open(path, os.O_RDONLY | _OPEN)
    try:
        return check(fd, kind, path)
    finally:
        os.close(fd)


def check(fd: int, kind: PageKind, path: Path) -> Header:
    """See that an open file is a whole page of this kind. Raises PageError."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise PageError(f"{path} is no file")
    raw = os.pread(fd, sizeof(Header), 0)
    if found.st_size < PAGE_BYTES[kind] or len(raw) < sizeof(Header):
        raise PageError(f"{path} is truncated: {found.st_size} of {PAGE_BYTES[kind]} bytes")
    header = Header.from_buffer_copy(raw)
    if header.magic != MAGIC or header.kind != kind:
        raise PageError(f"{path} is no {kind.name.lower()} page")
    if header.version != VERSION or header.size_bytes != PAGE_BYTES[kind]:
        raise PageError(f"{path} is of version {header.version}, this MuxFlow knows {VERSION}: restart what is older")
    return header


class WrittenPage(Generic[L]):
    """A page that this process alone writes, mapped."""

    def __init__(self, path: Path, kind: PageKind, layout: type[L]) -> None:
        """Open it. Raises PageError, PageInUseError when another process writes it, OSError."""
        self.path = path
        self._bytes = PAGE_BYTES[kind]
        self._fd = _open_read_write(path)
        try:
            check(self._fd, kind, path)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with us, however we end
            except BlockingIOError:
                raise PageInUseError(f"{path} is written by another process; end it first") from None
            self._map = mmap.mmap(self._fd, self._bytes)
        except BaseException:
            os.close(self._fd)
            raise
        self.content = layout.from_buffer(self._map)

    def address(self, field: str) -> int:
        """Where a field lies in memory."""
        return addressof(self.content) + int(getattr(type(self.content), field).offset)

    def check(self) -> None:
        """See that the file is still what readers find; a store beyond its end would kill us.

        Whoever truncates it between this look and the store does kill us. Only root, or we ourselves, can do that.
        Raises PageLostError, and ValueError after `close`.
        """
        if self._map.closed:
            raise ValueError(f"{self.path} is closed")
        found = os.fstat(self._fd)
        if found.st_nlink == 0 or found.st_size < self._bytes:
            raise PageLostError(f"{self.path} was {'removed' if found.st_nlink == 0 else 'truncated'} under its writer")

    def close(self) -> None:
        """Leave the page as it is, for readers and for the next writer."""
        if self._map.closed:
            return
        del self.content
        self._map.close()
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_for_reading(path: Path) -> int:
    """Open a page that need not be trusted. Raises PageError when it is not there, OSError."""
    try:
        return os.open(path, os.O_RDONLY | _OPEN)
    except FileNotFoundError:
        raise PageError(f"{path} is not there") from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a page for one look."""
    fd = open_for_reading(path)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_read_write(path: Path) -> int:
    """Open a page for its writer, who has to lift the protection from himself for a moment unless he is root."""
    try:
        return os.open(path, os.O_RDWR | _OPEN)
    except PermissionError:
        before = path.lstat()
        if before.st_uid != os.geteuid() or not stat.S_ISREG(before.st_mode):
            raise
    mode = stat.S_IMODE(before.st_mode)
    path.chmod(mode | stat.S_IWUSR)
    try:
        fd = os.open(path, os.O_RDWR | _OPEN)
    finally:
        path.chmod(mode)
    return fd


def _write_whole(fd: int, raw: bytes | bytearray) -> None:
    if os.pwrite(fd, raw, 0) != len(raw):
        raise OSError("the file system of the run directory is full")
