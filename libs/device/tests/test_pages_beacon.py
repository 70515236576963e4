"""Beacon pages, as the monitor sees them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxflow_device.pages import Beacons, BeaconView
from muxflow_device.pages.layout import MAGIC, PAGE_BYTES, VERSION, Header, PageKind, RawBeaconPage, RawBeaconSlot
from muxflow_device.processes import owner_of
from muxflow_device.rundir import DeviceDirectory

MS = 1_000_000

_HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX)
print("locked", flush=True)
input()
"""


@pytest.fixture
def place(directory: DeviceDirectory) -> Path:
    directory.create_beacons()
    return directory.beacons


@pytest.fixture
def beacons(directory: DeviceDirectory) -> Iterator[Beacons]:
    view = Beacons(directory)
    yield view
    view.close()


class Process:
    """One that has a page, and says what a test wants."""

    def __init__(self, place: Path, number: int, launches: int = 0, *, owner: int = 0) -> None:
        self.path = place / f"{number:016x}"
        self._owner = owner
        self.say(launches)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(self.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"locked\n"

    def say(self, launches: int) -> None:
        write(self.path, launches, owner=self._owner)

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def write(path: Path, launches: int = 0, *, owner: int = 0) -> Path:
    """Write a page, in place."""
    size = PAGE_BYTES[PageKind.BEACON]
    header = Header(magic=MAGIC, kind=PageKind.BEACON, version=VERSION, size_bytes=size)
    page = RawBeaconPage(header=header, slot=RawBeaconSlot(owner=owner, launches=launches))
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o444)
    os.pwrite(fd, bytes(page), 0)
    os.close(fd)
    return path


@pytest.fixture
def online(place: Path) -> Iterator[Process]:
    process = Process(place, 1)
    yield process
    process.kill()


@pytest.mark.usefixtures("place")
def test_a_directory_that_nobody_has_used_tells_of_nobody(beacons: Beacons) -> None:
    assert beacons.read() == BeaconView()


def test_who_holds_the_lock_is_told_whatever_the_page_says(beacons: Beacons, online: Process) -> None:
    assert (beacons.read().pids, beacons.read().problem) == (frozenset(), None)
    write(online.path, 10, owner=owner_of(1))
    view = beacons.read()
    assert (view.pids, view.launches, view.problem) == (frozenset({online.pid}), 10, None)


def test_the_page_of_one_that_was_killed_is_cleared_away(beacons: Beacons, online: Process) -> None:
    online.say(3)
    assert beacons.read().launches == 3
    online.kill()
    assert beacons.read() == BeaconView()
    assert not online.path.exists()


def test_pages_of_the_dead_that_were_never_seen_alive_are_cleared_away(beacons: Beacons, place: Path) -> None:
    gone = subprocess.Popen(["true"])
    dead = owner_of(gone.pid)
    gone.wait()
    write(place / f"{1:016x}", 3, owner=dead)
    write(place / f"{2:016x}", 3)
    assert beacons.read() == BeaconView()
    assert list(place.iterdir()) == []


def test_without_a_lock_a_page_lives_as_long_as_its_owner(beacons: Beacons, place: Path) -> None:
    path = write(place / f"{1:016x}", 3, owner=owner_of(os.getpid()))
    view = beacons.read()
    assert (view.pids, view.launches, path.exists()) == (frozenset({os.getpid()}), 3, True)


def test_a_launch_is_of_the_look_that_sees_the_count_changed(beacons: Beacons, online: Process) -> None:
    assert beacons.read(now_monotonic_ns=100 * MS).last_launch_monotonic_ns is None
    online.say(1)
    assert beacons.read(now_monotonic_ns=200 * MS).last_launch_monotonic_ns == 200 * MS
    assert beacons.read(now_monotonic_ns=300 * MS).last_launch_monotonic_ns == 200 * MS
    online.say(5)
    assert beacons.read(now_monotonic_ns=400 * MS).last_launch_monotonic_ns == 400 * MS


def test_what_the_first_look_finds_launched_counts_as_just_launched(beacons: Beacons, online: Process) -> None:
    online.say(7)
    assert beacons.read(now_monotonic_ns=100 * MS).last_launch_monotonic_ns == 100 * MS


def test_a_page_that_was_removed_tells_of_nobody_any_more(beacons: Beacons, online: Process) -> None:
    online.say(7)
    assert beacons.read().launches == 7
    online.path.unlink()
    assert beacons.read() == BeaconView()


def test_a_page_that_is_cut_while_it_is_open_is_zeros(beacons: Beacons, online: Process) -> None:
    online.say(7)
    assert beacons.read().launches == 7
    os.truncate(online.path, 5)
    assert beacons.read().launches == 0


def test_a_directory_that_is_gone_or_shut_is_a_problem(
    beacons: Beacons, place: Path, directory: DeviceDirectory
) -> None:
    place.rmdir()
    assert "No such file" in (beacons.read().problem or "")
    directory.create_beacons()
    place.chmod(0o755)
    assert "mode 755" in (beacons.read().problem or "")
    directory.create_beacons()
    assert beacons.read().problem is None


def test_whatever_else_lies_there_is_cleared_away_once_it_is_not_being_made(
    beacons: Beacons, place: Path, online: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    online.say(1)
    unfinished = write(place / f".{2:016x}")
    (place / f"{3:016x}").write_bytes(b"short")
    (place / f"{4:016x}").write_bytes(os.urandom(5000))
    os.mkfifo(place / f"{5:016x}")
    (place / f"{6:016x}").symlink_to("/dev/zero")
    (place / f"{7:016x}").mkdir()
    (place / "notes").touch()
    monkeypatch.setattr("muxflow_device.pages.beacon._UNFINISHED_S", 1000.0)
    assert beacons.read().pids == {online.pid}
    assert set(place.iterdir()) == {online.path, unfinished, place / "notes"}
    monkeypatch.setattr("muxflow_device.pages.beacon._UNFINISHED_S", 0.0)
    assert beacons.read().pids == {online.pid}
    assert list(place.iterdir()) == [online.path]


def test_thousands_of_files_are_cleared_away_look_by_look(beacons: Beacons, place: Path) -> None:
    for number in range(1, 2001):
        (place / f"{number:016x}").touch()
    beacons.read()
    assert len(list(place.iterdir())) == 2000 - 1024
    beacons.read()
    assert list(place.iterdir()) == []


def test_a_monitor_without_a_descriptor_left_clears_nobody_away(
    beacons: Beacons, online: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> int:
        raise OSError(24, f"no descriptor left for {path}")

    monkeypatch.setattr("muxflow_device.pages.beacon.open_for_reading", refused)
    assert beacons.read().problem is None
    assert online.path.exists()
    with online.path.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
