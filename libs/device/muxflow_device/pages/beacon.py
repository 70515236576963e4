"""The beacon page: whether online processes launch something. The monitor makes it and looks at it."""

from __future__ import annotations

import os
import time
from ctypes import sizeof
from typing import Final, Self

import msgspec

from muxflow_device.pages.errors import PageError
from muxflow_device.pages.file import check, create, open_for_reading
from muxflow_device.pages.layout import PAGE_BYTES, PageKind, RawBeaconPage
from muxflow_device.processes import lives, pid_of
from muxflow_device.rundir import DeviceDirectory

_CLOSED: Final = -1
_WRITABLE: Final = 0o666
"""Online services run as users that we do not know. So anybody on the node can write it: forge that a service is busy,
or that it is not, and cut it short, which ends the processes that have it mapped (xcuda-preload/README.md)."""


class BeaconView(msgspec.Struct, frozen=True, kw_only=True):
    """What online processes say of themselves."""

    pids: frozenset[int] = frozenset()
    """The live ones that have told of a launch, by their own process ids."""
    launches: int = 0
    """Theirs, all told."""
    last_launch_monotonic_ns: int | None = None
    """When the latest was first seen, by CLOCK_MONOTONIC; None when nobody has launched anything."""
    problem: str | None = None


class BeaconPage:
    """The monitor's view of one beacon page. Keep it: the page has no times, so that a launch is one of its look."""

    def __init__(self, directory: DeviceDirectory) -> None:
        """Open the page. Raises PageError when it is not there, OSError."""
        self.path = directory.beacon_page
        self._fd = open_for_reading(self.path)
        self._launches: dict[int, int] = {}
        self._last_ns: int | None = None

    @classmethod
    def create(cls, directory: DeviceDirectory, *, uuid: str) -> None:
        """Make the page; one that is there stays. Raises OSError."""
        directory.create()
        create(directory.beacon_page, RawBeaconPage(), kind=PageKind.BEACON, uuid=uuid, mode=_WRITABLE, owner=None)

    def read(self, *, now_monotonic_ns: int | None = None) -> BeaconView:
        """Look at all processes. What the first look finds launched counts as just launched: somebody may be busy."""
        now_ns = time.monotonic_ns() if now_monotonic_ns is None else now_monotonic_ns
        try:
            check(self._fd, PageKind.BEACON, self.path)
            if not self._is_at_its_path():
                raise PageError(f"{self.path} was removed or replaced")  # noqa: TRY301
            raw = os.pread(self._fd, PAGE_BYTES[PageKind.BEACON], 0)
            if len(raw) < sizeof(RawBeaconPage):
                raise PageError(f"{self.path} was truncated while it was read")  # noqa: TRY301
        except PageError as error:
            return BeaconView(problem=str(error))
        if not raw[RawBeaconPage.slots.offset :].strip(b"\0"):  # nobody has ever used it: the common case, and cheap
            return BeaconView()
        slots = RawBeaconPage.from_buffer_copy(raw).slots
        launches = {slot.owner: slot.launches for slot in slots if slot.owner and lives(slot.owner)}
        if any(count != self._launches.get(owner, 0) for owner, count in launches.items()):
            self._last_ns = now_ns
        self._launches = launches
        return BeaconView(
            pids=frozenset(pid_of(owner) for owner, count in launches.items() if count),
            launches=sum(launches.values()),
            last_launch_monotonic_ns=self._last_ns if any(launches.values()) else None,
        )

    def _is_at_its_path(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))  # noqa: PTH116 - ten times a second
        except OSError:
            return False

    def close(self) -> None:
        """Let the page go; there is no look at it afterwards."""
        fd, self._fd = self._fd, _CLOSED
        if fd != _CLOSED:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
