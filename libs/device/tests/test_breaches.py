from __future__ import annotations

from pathlib import Path

from muxflow.contracts import Attempt
from muxflow_device.breaches import Breaches, Broken, write_breaches
from muxflow_device.rundir import DeviceDirectory, RunDirectory

BROKEN = Broken(attempt=Attempt(tenant="default", job="train", attempt=3), cause="why", decided_ns=7)


def directory(tmp_path: Path) -> DeviceDirectory:
    device = RunDirectory(tmp_path / "run").device("GPU-1")
    device.create()
    return device


def test_what_is_written_is_read_until_it_is_replaced(tmp_path: Path) -> None:
    device = directory(tmp_path)
    breaches = Breaches(device)
    assert breaches.look() == ()
    write_breaches(device, [BROKEN])
    assert breaches.look() == breaches.look() == (BROKEN,)
    write_breaches(device, [])
    assert breaches.look() == ()


def test_what_is_no_such_file_accuses_nobody(tmp_path: Path) -> None:
    device = directory(tmp_path)
    breaches = Breaches(device)
    for garbage in (b"", b"[1]", b'[{"cause": "why"}]', b"\xff"):
        device.breaches.write_bytes(garbage)
        assert breaches.look() == ()
    device.breaches.unlink()
    assert breaches.look() == ()
