"""The device page: what the monitor says is what readers see, and in doubt nothing runs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muxflow.contracts import DeviceCondition
from muxflow_decisions.device.gate import FROZEN, Gate, GateState, JobPhase
from muxflow_device.pages import (
    DevicePage,
    DevicePageWriter,
    DeviceReport,
    JobControlWriter,
    JobLimits,
    JobOrder,
    PageInUseError,
    PageLostError,
)
from muxflow_device.pages.layout import RawDevicePage
from muxflow_device.rundir import DeviceDirectory, JobDirectory, RunDirectory

OPEN = Gate(state=GateState.OPEN, budget_permille=800, window_us=2000)
STALE_MS = 60_000
"""Long: these tests do not age heartbeats by waiting, nor shall a loaded machine."""
DEADLINE_S = 20.0


def report(**changes: object) -> DeviceReport:
    values: dict[str, object] = {
        "time_boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        "condition": DeviceCondition.HEALTHY,
        "since_boottime_ns": 5,
    }
    return DeviceReport(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def writer(directory: DeviceDirectory, uuid: str) -> Iterator[DevicePageWriter]:
    with DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS) as writer:
        yield writer


@pytest.fixture
def page(directory: DeviceDirectory) -> Iterator[DevicePage]:
    with DevicePage(directory) as page:
        yield page


def test_readers_see_what_the_monitor_says(writer: DevicePageWriter, page: DevicePage, uuid: str) -> None:
    said = report(
        condition=DeviceCondition.OVERLIMIT,
        hard=True,
        epoch=7,
        cause="memory: 15.9 GiB of 16 GiB",
        online_activity_permille=0,
        memory_used_bytes=2**34,
        sm_clock_mhz=1590,
    )
    writer.write(said)
    writer.store_gate(OPEN, epoch=7)
    writer.beat()
    view = page.look()
    assert (view.gate, view.epoch, view.fresh, view.uuid) == (OPEN, 7, True, uuid)
    assert (view.report, view.condition, view.problem) == (said, DeviceCondition.OVERLIMIT, None)


def test_a_reading_that_a_gpu_cannot_give_is_none_and_a_measured_zero_is_zero(
    writer: DevicePageWriter, page: DevicePage
) -> None:
    writer.write(report(utilization_permille=0))
    seen = page.look().report
    assert seen is not None
    assert (seen.utilization_permille, seen.sm_activity_permille, seen.memory_total_bytes) == (0, None, None)


def test_a_new_page_is_frozen_and_says_that_nothing_was_read_yet(writer: DevicePageWriter, page: DevicePage) -> None:
    view = page.look()
    assert (view.gate, view.fresh, view.report) == (FROZEN, False, None)
    assert view.problem is not None
    assert "nothing yet" in view.problem


def test_a_page_that_is_not_there_is_frozen_and_is_seen_when_it_comes(
    directory: DeviceDirectory, page: DevicePage, uuid: str
) -> None:
    view = page.look()
    assert (view.gate, view.fresh, view.condition, view.uuid) == (FROZEN, False, None, "")
    assert "is the monitor of this node running" in (view.problem or "")
    with DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS) as writer:
        writer.write(report())
        writer.store_gate(OPEN, epoch=1)
        writer.beat()
        assert page.look().gate == OPEN


def test_a_stale_page_is_frozen_but_keeps_the_last_word_of_its_monitor(
    directory: DeviceDirectory, page: DevicePage, uuid: str
) -> None:
    with DevicePageWriter(directory, uuid=uuid, stale_after_ms=1) as writer:
        writer.write(report(cause="a burst"))
        writer.store_gate(OPEN, epoch=3)
        writer.beat()
    deadline = time.monotonic() + DEADLINE_S
    while (view := page.look()).fresh:
        assert time.monotonic() < deadline
    assert (view.gate, view.epoch, view.condition) == (FROZEN, 3, DeviceCondition.HEALTHY)


def test_a_new_monitor_keeps_the_page_freezes_it_and_goes_on_counting(
    directory: DeviceDirectory, page: DevicePage, uuid: str
) -> None:
    with DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS) as writer:
        writer.write(report())
        writer.beat()
        writer.store_gate(OPEN, epoch=41)
        assert page.look().gate == OPEN
    inode = directory.device_page.stat().st_ino
    with DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS) as writer:
        assert writer.epoch_before == 41
        assert directory.device_page.stat().st_ino == inode, "whoever has mapped it goes on seeing it"
        assert (page.look().gate, page.look().epoch) == (FROZEN, 41)


def test_a_page_has_one_writer(writer: DevicePageWriter, directory: DeviceDirectory, uuid: str) -> None:
    with pytest.raises(PageInUseError, match="written by another process"):
        DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS)


def test_a_writer_that_was_killed_makes_room_for_the_next(directory: DeviceDirectory, uuid: str) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from muxflow_device.pages import DevicePageWriter; from muxflow_device.rundir import DeviceDirectory\n"
        "writer = DevicePageWriter(DeviceDirectory(Path(sys.argv[1])), uuid=sys.argv[2], stale_after_ms=1000)\n"
        "print('writes', flush=True); time.sleep(1000)"
    )
    command = [sys.executable, "-c", program, str(directory.path), uuid]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as monitor:
        assert monitor.stdout is not None
        assert monitor.stdout.readline() == "writes\n"
        with pytest.raises(PageInUseError):
            DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS)
        monitor.kill()
    DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS).close()


def damage_truncate(path: Path) -> None:
    os.truncate(path, 100)


def damage_remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [damage_truncate, damage_remove])
def test_a_writer_learns_that_its_page_was_taken_away_and_can_begin_anew(
    directory: DeviceDirectory, page: DevicePage, damage: Callable[[Path], None], uuid: str
) -> None:
    with DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS) as writer:
        damage(directory.device_page)
        for act in (writer.beat, lambda: writer.store_gate(OPEN, epoch=1), lambda: writer.write(report())):
            with pytest.raises(PageLostError):
                act()
        assert page.look().gate == FROZEN
    with DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS) as writer:
        writer.write(report())
        writer.beat()
        writer.store_gate(OPEN, epoch=1)
        assert page.look().gate == OPEN


def test_nobody_truncates_a_mapped_page_by_accident(
    writer: DevicePageWriter, directory: DeviceDirectory, job: JobDirectory, uuid: str
) -> None:
    with JobControlWriter(job, JobLimits(gpu=uuid, quota_bytes=None), JobOrder(gate=OPEN, phase=JobPhase.RUN)):
        for path in (directory.device_page, job.control_page):
            assert stat.S_IMODE(path.stat().st_mode) == 0o444


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_takes_over_its_own_page_and_leaves_it_protected(run: RunDirectory) -> None:
    run.path.parent.chmod(0o711)
    run.path.mkdir(mode=0o711)
    os.chown(run.path, 12345, 12345)
    program = (
        "import os, sys; from pathlib import Path\n"
        "from muxflow_device.pages import DevicePageWriter; from muxflow_device.rundir import RunDirectory\n"
        "os.setgid(12345); os.setuid(12345)\n"
        "for _ in range(2):\n"
        "    gpu = RunDirectory(Path(sys.argv[1])).device('GPU-1')\n"
        "    DevicePageWriter(gpu, uuid='GPU-1', stale_after_ms=9).close()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(run.path)], check=True, timeout=DEADLINE_S)
    assert stat.S_IMODE(run.device("GPU-1").device_page.stat().st_mode) == 0o444


def test_a_page_is_whole_from_the_start(writer: DevicePageWriter, directory: DeviceDirectory) -> None:
    found = directory.device_page.stat()
    assert found.st_size == 4096
    assert found.st_blocks * 512 >= found.st_size, "no hole that a full file system could refuse to fill"
    assert [path.name for path in directory.path.iterdir()] == ["device"], "nothing unfinished is left"


def test_a_page_of_another_gpu_is_replaced(directory: DeviceDirectory, uuid: str) -> None:
    DevicePageWriter(directory, uuid="GPU-old", stale_after_ms=STALE_MS).close()
    with DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS), DevicePage(directory) as page:
        assert page.look().uuid == uuid


def test_a_page_of_another_version_is_replaced_by_a_newer_monitor(
    directory: DeviceDirectory, page: DevicePage, uuid: str
) -> None:
    DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS).close()
    with directory.device_page.open("r+b") as file:
        file.seek(6)
        file.write(b"\x07\0")
    with DevicePage(directory) as reader:
        assert "of another version" in (reader.look().problem or "")
        with DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS) as writer:
            writer.write(report())
            assert reader.look().problem is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cause=st.text(max_size=400))
def test_a_cause_is_cut_where_a_character_ends(writer: DevicePageWriter, page: DevicePage, cause: str) -> None:
    writer.write(report(cause=cause))
    seen = page.look().report
    assert seen is not None
    assert cause.startswith(seen.cause)
    assert len(seen.cause.encode()) <= 159


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=4096), position=st.integers(0, 4096), length=st.integers(0, 8192))
def test_no_garbage_stops_a_reader_and_what_is_no_page_is_frozen(
    directory: DeviceDirectory, raw: bytes, position: int, length: int
) -> None:
    directory.create()
    directory.device_page.write_bytes(raw)
    with DevicePage(directory) as page:
        assert page.look().gate == FROZEN
    directory.device_page.unlink()
    with DevicePageWriter(directory, uuid="GPU-1", stale_after_ms=STALE_MS), DevicePage(directory) as page:
        with directory.device_page.open("r+b") as file:
            file.seek(position)
            file.write(raw)
        view = page.look()
        assert view.gate == FROZEN or view.fresh
        os.truncate(directory.device_page, length)
        page.look()
    directory.device_page.unlink()


def test_a_report_is_never_seen_in_halves(writer: DevicePageWriter, page: DevicePage) -> None:
    done = threading.Event()

    def write_on() -> None:
        number = 0
        while not done.is_set():
            number += 1
            writer.write(report(epoch=number, cause=str(number), memory_used_bytes=number))

    thread = threading.Thread(target=write_on)
    writer.write(report(epoch=0, cause="0", memory_used_bytes=0))
    thread.start()
    try:
        for _ in range(3000):
            seen = page.look().report
            assert seen is not None
            assert (seen.cause, seen.memory_used_bytes) == (str(seen.epoch), seen.epoch)
    finally:
        done.set()
        thread.join()


def test_a_writer_that_died_in_the_middle_of_a_report_leaves_a_gate_that_holds(
    directory: DeviceDirectory, page: DevicePage, uuid: str
) -> None:
    with DevicePageWriter(directory, uuid=uuid, stale_after_ms=STALE_MS) as writer:
        writer.write(report())
        writer.beat()
        writer.store_gate(OPEN, epoch=2)
        assert page.look().fresh
        with directory.device_page.open("r+b") as file:
            file.seek(RawDevicePage.sequence.offset)
            file.write(b"\x01\0\0\0")
        view = page.look()
        assert (view.gate, view.report) == (OPEN, None)
        assert "in the middle of a report" in (view.problem or "")
        writer.write(report())
        assert page.look().report is not None


def test_nothing_is_written_or_read_through_what_was_closed(
    directory: DeviceDirectory, writer: DevicePageWriter, page: DevicePage
) -> None:
    for each in (writer, page):
        each.close()
        each.close()
    for act in (writer.beat, lambda: writer.store_gate(OPEN, epoch=1), lambda: writer.write(report()), page.look):
        with pytest.raises(ValueError, match="closed"):
            act()


@pytest.mark.bench
def test_a_store_costs_microseconds(writer: DevicePageWriter) -> None:
    def fastest(act: Callable[[], None]) -> float:
        spans = []
        for _ in range(2000):
            began_ns = time.perf_counter_ns()
            act()
            spans.append(time.perf_counter_ns() - began_ns)
        return min(spans) / 1000

    assert fastest(lambda: writer.store_gate(OPEN, epoch=1)) < 5
    assert fastest(writer.beat) < 5
