"""Beacon pages: whether online processes launch something. Each makes its own; the monitor looks at all of them.

Whether a process lives, and what pid it has here, is told by the lock on its page (`muxflow_pages.h`): what it says of
itself may be meant in another PID namespace.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from muxflow_device.pages.errors import PageError
from muxflow_device.pages.file import check, open_for_reading
from muxflow_device.pages.layout import BEACON_NAME_DIGITS, BEACON_PROCESSES, PAGE_BYTES, PageKind, RawBeaconPage
from muxflow_device.processes import lives, pid_of
from muxflow_device.rundir import ANYBODYS, DeviceDirectory

_NAME: Final = re.compile(rf"[0-9a-f]{{{BEACON_NAME_DIGITS}}}")
_NAMES_MAX: Final = 1024
"""As many are met at a time, in a directory that is full of other things."""
_UNFINISHED_S: Final = 1.0
"""What is no page for so long is not about to become one."""
_OURS_TO_BLAME: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})


class BeaconView(msgspec.Struct, frozen=True, kw_only=True):
    """What online processes say of themselves."""

    pids: frozenset[int] = frozenset()
    """The live ones that have told of a launch, as this PID namespace names them."""
    launches: int = 0
    """Theirs, all told."""
    last_launch_monotonic_ns: int | None = None
    """When the latest was first seen, by CLOCK_MONOTONIC; None when nobody has launched anything."""
    problem: str | None = None


class Beacons:
    """The monitor's view of a GPU's beacon pages. Keep it: they have no times, so that a launch is of the look that
    sees the count changed.

    A look also clears away the pages of the dead, and whatever else lies there.
    """

    def __init__(self, directory: DeviceDirectory) -> None:
        """Nothing is opened, and nothing need be there yet."""
        self.path = directory.beacons
        self._pages: dict[str, _Page] = {}
        self._launches: dict[str, int] = {}
        self._last_ns: int | None = None

    def read(self, *, now_monotonic_ns: int | None = None) -> BeaconView:
        """Look at all processes. What the first look finds launched counts as just launched: somebody may be busy."""
        now_ns = time.monotonic_ns() if now_monotonic_ns is None else now_monotonic_ns
        try:
            self._meet_all()
            problem = self._problem()
        except OSError as error:
            self.close()
            return BeaconView(problem=f"{self.path}: {error.strerror}")
        launches = {name: page.launches() for name, page in self._pages.items()}
        if any(count != self._launches.get(name, 0) for name, count in launches.items()):
            self._last_ns = now_ns
        self._launches = launches
        pids = {self._pages[name].pid for name, count in launches.items() if count}
        return BeaconView(
            pids=frozenset(pid for pid in pids if pid is not None),
            launches=sum(launches.values()),
            last_launch_monotonic_ns=self._last_ns if any(launches.values()) else None,
            problem=problem,
        )

    def close(self) -> None:
        """Let the pages go; the next look opens them anew."""
        for page in self._pages.values():
            page.close()
        self._pages.clear()

    def _problem(self) -> str | None:
        mode = stat.S_IMODE(self.path.stat().st_mode)
        return None if mode == ANYBODYS else f"{self.path} has mode {mode:o}: not everybody can make a page there"

    def _meet_all(self) -> None:
        """Open what has come, drop what has gone. Raises OSError when there is no directory."""
        with os.scandir(self.path) as entries:
            names = {entry.name for entry in islice(entries, _NAMES_MAX)}
        for name in self._pages.keys() - names:
            self._pages.pop(name).close()
        for name in names:
            page = self._pages.get(name)
            if page is None:
                self._meet(name)
            elif not page.is_alive():
                self._pages.pop(name).close()
                self._clear_away(name, after_s=0.0)

    def _meet(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            self._clear_away(name, after_s=_UNFINISHED_S)
            return
        if len(self._pages) == BEACON_PROCESSES:
            return
        try:
            page = _Page(self.path / name)
        except (PageError, OSError) as error:
            if not isinstance(error, OSError) or error.errno not in _OURS_TO_BLAME:
                self._clear_away(name, after_s=0.0)
        else:
            self._pages[name] = page

    def _clear_away(self, name: str, *, after_s: float) -> None:
        path = self.path / name
        with contextlib.suppress(OSError):  # gone, or a directory with something in it
            found = path.lstat()
            if abs(time.time() - found.st_ctime) < after_s:
                return
            if stat.S_ISDIR(found.st_mode):
                path.rmdir()
            else:
                path.unlink()


class _Page:
    """One process's."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises PageError when it is none, or its process has ended, and OSError."""
        self._fd = open_for_reading(path)
        try:
            check(self._fd, PageKind.BEACON, path)
            if not self.is_alive():
                raise PageError(f"{path} is of a process that has ended")  # noqa: TRY301
            self.pid = self._whose()
        except BaseException:
            self.close()
            raise

    def is_alive(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        owner = self._raw().slot.owner
        return bool(owner) and lives(owner)

    def launches(self) -> int:
        return int(self._raw().slot.launches)

    def close(self) -> None:
        os.close(self._fd)

    def _raw(self) -> RawBeaconPage:
        """Read it; what has been cut off is zeros."""
        size = PAGE_BYTES[PageKind.BEACON]
        return RawBeaconPage.from_buffer_copy(os.pread(self._fd, size, 0).ljust(size, b"\0"))

    def _whose(self) -> int | None:
        """Find who holds the lock; None: nobody whom this PID namespace knows."""
        found = os.fstat(self._fd)
        file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            _, kind, _, access, pid, where, *_ = line.split()
            if (kind, access, where) == ("FLOCK", "WRITE", file):
                return int(pid)
        owner = self._raw().slot.owner
        return pid_of(owner) if lives(owner) else None
