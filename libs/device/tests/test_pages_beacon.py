"""The beacon page, as the monitor sees it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from muxflow_device.pages import BeaconPage, BeaconView
from muxflow_device.pages.layout import RawBeaconPage
from muxflow_device.processes import owner_of
from muxflow_device.rundir import DeviceDirectory

MS = 1_000_000


def write(page: Path, **launches: tuple[int, int]) -> None:
    """Fill slots: ``s5=(owner, launches)``."""
    with page.open("r+b") as file:
        raw = RawBeaconPage.from_buffer_copy(file.read())
        for slot, (owner, count) in launches.items():
            raw.slots[int(slot[1:])].owner = owner
            raw.slots[int(slot[1:])].launches = count
        file.seek(0)
        file.write(bytes(raw))


def test_a_page_that_nobody_has_used_tells_of_nobody(directory: DeviceDirectory, uuid: str) -> None:
    BeaconPage.create(directory, uuid=uuid)
    with BeaconPage(directory) as beacon:
        assert beacon.read() == BeaconView()


def test_live_online_processes_are_told_and_those_that_ended_are_not(directory: DeviceDirectory, uuid: str) -> None:
    BeaconPage.create(directory, uuid=uuid)
    gone = subprocess.Popen(["true"])
    dead = owner_of(gone.pid)
    gone.wait()
    write(directory.beacon_page, s0=(owner_of(os.getpid()), 10), s5=(dead, 10), s6=(owner_of(1), 10))
    with BeaconPage(directory) as beacon:
        view = beacon.read()
    assert (view.pids, view.launches, view.problem) == (frozenset({os.getpid(), 1}), 20, None)


def test_a_launch_is_of_the_look_that_sees_the_count_changed(directory: DeviceDirectory, uuid: str) -> None:
    BeaconPage.create(directory, uuid=uuid)
    own = owner_of(os.getpid())
    write(directory.beacon_page, s0=(own, 0))
    with BeaconPage(directory) as beacon:
        assert beacon.read(now_monotonic_ns=100 * MS).last_launch_monotonic_ns is None
        write(directory.beacon_page, s0=(own, 1))
        assert beacon.read(now_monotonic_ns=200 * MS).last_launch_monotonic_ns == 200 * MS
        assert beacon.read(now_monotonic_ns=300 * MS).last_launch_monotonic_ns == 200 * MS
        write(directory.beacon_page, s0=(own, 5), s1=(owner_of(1), 0))
        assert beacon.read(now_monotonic_ns=400 * MS).last_launch_monotonic_ns == 400 * MS


def test_what_the_first_look_finds_launched_counts_as_just_launched(directory: DeviceDirectory, uuid: str) -> None:
    BeaconPage.create(directory, uuid=uuid)
    write(directory.beacon_page, s0=(owner_of(os.getpid()), 7))
    with BeaconPage(directory) as beacon:
        assert beacon.read(now_monotonic_ns=100 * MS).last_launch_monotonic_ns == 100 * MS


def test_a_page_that_was_removed_is_not_read_any_more(directory: DeviceDirectory, uuid: str) -> None:
    BeaconPage.create(directory, uuid=uuid)
    with BeaconPage(directory) as beacon:
        directory.beacon_page.unlink()
        assert "removed" in (beacon.read().problem or "")
        BeaconPage.create(directory, uuid=uuid)
        assert "replaced" in (beacon.read().problem or "")


def test_a_page_that_is_truncated_tells_of_nobody_and_why(directory: DeviceDirectory, uuid: str) -> None:
    BeaconPage.create(directory, uuid=uuid)
    with BeaconPage(directory) as beacon:
        os.truncate(directory.beacon_page, 5)
        view = beacon.read()
    assert (view.pids, view.launches) == (frozenset(), 0)
    assert "truncated" in (view.problem or "")
