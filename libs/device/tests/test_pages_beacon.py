"""The beacon page, as the monitor sees it."""

from __future__ import annotations

import os
import subprocess
import time

from muxflow_device.pages import BeaconPage
from muxflow_device.pages.layout import RawBeaconPage
from muxflow_device.processes import owner_of
from muxflow_device.rundir import DeviceDirectory


def test_a_beacon_tells_of_live_online_processes(directory: DeviceDirectory, uuid: str) -> None:
    BeaconPage.create(directory, uuid=uuid)
    gone = subprocess.Popen(["true"])
    dead = owner_of(gone.pid)
    gone.wait()
    now_ns = time.monotonic_ns()
    with directory.beacon_page.open("r+b") as file:
        raw = RawBeaconPage.from_buffer_copy(file.read())
        for slot, owner, launch_ns in (
            (0, owner_of(os.getpid()), now_ns - 500),
            (5, dead, now_ns),
            (6, owner_of(1), 0),
        ):
            raw.slots[slot].owner = owner
            raw.slots[slot].last_launch_monotonic_ns = launch_ns
            raw.slots[slot].launches = 10
        file.seek(0)
        file.write(bytes(raw))
    with BeaconPage(directory) as beacon:
        view = beacon.read()
        assert (view.processes, view.launches, view.last_launch_monotonic_ns) == (2, 20, now_ns - 500)
        assert beacon.read(now_monotonic_ns=now_ns - 1000).last_launch_monotonic_ns == now_ns - 1000, (
            "no later than now"
        )
        os.truncate(directory.beacon_page, 5)
        assert "truncated" in (beacon.read().problem or "")
