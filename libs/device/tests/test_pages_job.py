"""Job pages are believed only as far as they can be true, and nothing that a job writes there stops a reader."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muxflow_device.pages import JobPage, PageError
from muxflow_device.pages.job import COUNT_MAX
from muxflow_device.pages.layout import JOB_SLOTS, PAGE_BYTES, Header, PageKind, RawJobPage, RawProcessSlot
from muxflow_device.processes import owner_of
from muxflow_device.rundir import JobDirectory

SECOND = 10**9
GIB = 2**30


class Pen:
    """Writes into a job page as its processes do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, slot: int, owner: int, **counters: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(RawJobPage.slots.offset + slot * 256)
            file.write(bytes(RawProcessSlot(owner=owner, **counters)))

    def scribble(self, raw: bytes) -> None:
        with self.path.open("r+b") as file:
            file.write(raw)


@pytest.fixture
def pen(job: JobDirectory, uuid: str) -> Pen:
    JobPage.create(job, gpu=uuid)
    return Pen(job.job_page)


@pytest.fixture
def page(job: JobDirectory, pen: Pen) -> Iterator[JobPage]:
    with JobPage(job, memory_bytes_max=16 * GIB) as page:
        yield page


@pytest.fixture
def me() -> int:
    return owner_of(os.getpid())


@pytest.fixture
def dead() -> int:
    process = subprocess.Popen(["true"])
    owner = owner_of(process.pid)
    process.wait()
    return owner


def test_live_processes_are_summed_and_dead_ones_hold_nothing(page: JobPage, pen: Pen, me: int, dead: int) -> None:
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    pen.write(0, me, launches=10, memory_bytes=2 * GIB, inflight=3, inflight_ns=500, updated_boottime_ns=now_ns)
    pen.write(3, owner_of(1), launches=5, memory_bytes=GIB, drained=1, busy_ns=900)
    pen.write(63, dead, launches=7, memory_bytes=4 * GIB, last_error=719, last_error_call=4, last_error_boottime_ns=77)
    usage = page.read()
    assert [process.pid for process in usage.processes] == [os.getpid(), 1]
    assert (usage.memory_bytes, usage.inflight, usage.inflight_ns) == (3 * GIB, 3, 500)
    assert (usage.launches, usage.busy_ns, usage.drained, usage.problems) == (22, 900, False, ())
    assert usage.processes[0].updated_boottime_ns == now_ns
    (ended,) = usage.ended
    assert (ended.error, ended.error_call, ended.error_boottime_ns) == (719, 4, 77)


def test_a_job_is_drained_when_all_its_live_processes_say_so(page: JobPage, pen: Pen, me: int, dead: int) -> None:
    assert page.read().drained, "nobody has anything in flight"
    pen.write(0, me, drained=1)
    pen.write(1, dead, drained=0)
    assert page.read().drained
    pen.write(2, owner_of(1), drained=0)
    assert not page.read().drained


def test_totals_outlive_the_processes_that_grew_them(page: JobPage, pen: Pen, me: int, dead: int) -> None:
    pen.write(0, dead, launches=100, frozen_ns=40)
    assert page.read().launches == 100
    pen.write(0, me, launches=3, frozen_ns=2)  # the next process in that slot begins anew
    usage = page.read()
    assert (usage.launches, usage.frozen_ns, usage.problems) == (103, 42, ())


def test_counters_that_go_backwards_are_not_believed(page: JobPage, pen: Pen, me: int) -> None:
    pen.write(0, me, launches=100)
    page.read()
    pen.write(0, me, launches=40)
    usage = page.read()
    assert usage.launches == 100
    assert usage.problems == (f"pid {os.getpid()} says launches = 40 after 100",)
    pen.write(0, me, launches=110)
    assert page.read().launches == 110, "and what grows from there counts once"


def test_nobody_is_busy_for_longer_than_time_has_passed(page: JobPage, pen: Pen, me: int) -> None:
    now_ns = 1000 * SECOND
    pen.write(0, me, busy_ns=0)
    page.read(now_boottime_ns=now_ns)
    pen.write(0, me, busy_ns=3600 * SECOND)
    usage = page.read(now_boottime_ns=now_ns + SECOND)
    assert SECOND <= usage.busy_ns <= 1.2 * SECOND
    assert "says busy_ns = 3600000000000" in usage.problems[0]


def test_memory_beyond_the_devices_own_is_clipped(page: JobPage, pen: Pen, me: int) -> None:
    pen.write(0, me, memory_bytes=2**63, inflation_permille=2**31, updated_boottime_ns=2**62, drained=77)
    usage = page.read()
    (process,) = usage.processes
    assert (process.memory_bytes, process.inflation_permille, process.updated_boottime_ns) == (16 * GIB, None, None)
    assert not process.drained
    assert len(usage.problems) == 3


def test_totals_are_never_more_than_an_event_can_carry(page: JobPage, pen: Pen, me: int) -> None:
    for position, owner in enumerate((me, owner_of(1), me + 1)):
        pen.write(position, owner, **dict.fromkeys(("launches", "frozen_ns", "refused_bytes"), 2**64 - 1))
    usage = page.read()
    assert (usage.launches, usage.frozen_ns, usage.refused_bytes) == (COUNT_MAX,) * 3
    assert page.read().launches == COUNT_MAX


@pytest.mark.parametrize("at_ns", [2**63 - 1, -1, 0])
def test_an_error_at_a_time_that_cannot_be_has_none(page: JobPage, pen: Pen, me: int, at_ns: int) -> None:
    pen.write(0, me, last_error=719, last_error_boottime_ns=at_ns)
    (process,) = page.read().processes
    assert (process.error, process.error_boottime_ns) == (719, None)


def test_a_process_counts_once_however_many_slots_name_it(page: JobPage, pen: Pen, me: int) -> None:
    for slot in range(JOB_SLOTS):
        pen.write(slot, me, memory_bytes=GIB)
    usage = page.read()
    assert usage.memory_bytes == GIB
    assert usage.problems == (f"pid {os.getpid()} has two slots",) * (JOB_SLOTS - 1)


@pytest.mark.parametrize("size", [0, 79, 100, PAGE_BYTES[PageKind.JOB] - 1])
def test_a_truncated_page_is_reported_and_its_totals_stay(page: JobPage, pen: Pen, me: int, size: int) -> None:
    pen.write(0, me, launches=100, busy_ns=5)
    page.read()
    os.truncate(pen.path, size)
    usage = page.read()
    assert (usage.processes, usage.launches) == ((), 100)
    assert "truncated" in usage.problems[0]


def test_a_page_that_grew_again_after_truncation_is_none(page: JobPage, pen: Pen, me: int) -> None:
    os.truncate(pen.path, 0)
    os.truncate(pen.path, PAGE_BYTES[PageKind.JOB])
    assert page.read().problems == (f"{pen.path} is no job page",)


def test_a_page_that_is_not_there_is_said_to_be_missing(job: JobDirectory) -> None:
    with pytest.raises(PageError, match="is not there"):
        JobPage(job)


def test_a_fifo_in_place_of_a_page_holds_nobody_up(job: JobDirectory) -> None:
    job.create()
    os.mkfifo(job.job_page)
    with JobPage(job) as page:
        assert page.read().problems == (f"{job.job_page} is no file",)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=4096), position=st.integers(0, PAGE_BYTES[PageKind.JOB]), header=st.booleans())
def test_no_garbage_stops_a_reader_and_totals_never_fall(
    page: JobPage, pen: Pen, raw: bytes, position: int, header: bool
) -> None:
    before = page.read()
    with pen.path.open("r+b") as file:
        file.seek(position)
        file.write(raw)
        if header:
            file.seek(0)
            file.write(bytes(Header(magic=0x5846554D, kind=3, version=1, size_bytes=PAGE_BYTES[PageKind.JOB])))
    after = page.read()
    for total in ("launches", "busy_ns", "throttled_ns", "frozen_ns", "refused_bytes"):
        assert getattr(before, total) <= getattr(after, total) <= COUNT_MAX
    assert all(0 <= process.memory_bytes <= 16 * GIB for process in after.processes)


def test_the_page_belongs_to_the_jobs_user_who_can_write_it(job: JobDirectory, uuid: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a page away")
    JobPage.create(job, gpu=uuid, owner=(12345, 23456))
    found = job.job_page.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 23456, 0o644)
    assert found.st_blocks * 512 >= found.st_size, "no hole that a full file system could refuse to fill"
