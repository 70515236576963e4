"""The C half of the pages, alone and under the sanitizers: programs of xcuda-preload/tests, which end with a sentence
on stderr when something is not so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from muxflow_device.pages import layout

ROOM = Path(__file__).parents[3] / "xcuda-preload"
DEADLINE_S = 50.0

STRUCTURES = {
    "mux_page_header": layout.Header,
    "mux_device_readings": layout.RawReadings,
    "mux_device_page": layout.RawDevicePage,
    "mux_control_page": layout.RawControlPage,
    "mux_process_slot": layout.RawProcessSlot,
    "mux_job_page": layout.RawJobPage,
    "mux_beacon_slot": layout.RawBeaconSlot,
    "mux_beacon_page": layout.RawBeaconPage,
    "mux_look": layout.RawLook,
}
CONSTANTS = {
    "MUX_PAGE_MAGIC": layout.MAGIC,
    "MUX_PAGE_VERSION": layout.VERSION,
    "MUX_PAGE_DEVICE": layout.PageKind.DEVICE,
    "MUX_PAGE_CONTROL": layout.PageKind.CONTROL,
    "MUX_PAGE_JOB": layout.PageKind.JOB,
    "MUX_PAGE_BEACON": layout.PageKind.BEACON,
    "MUX_DEVICE_PAGE_BYTES": layout.PAGE_BYTES[layout.PageKind.DEVICE],
    "MUX_CONTROL_PAGE_BYTES": layout.PAGE_BYTES[layout.PageKind.CONTROL],
    "MUX_JOB_PAGE_BYTES": layout.PAGE_BYTES[layout.PageKind.JOB],
    "MUX_BEACON_PAGE_BYTES": layout.PAGE_BYTES[layout.PageKind.BEACON],
    "MUX_JOB_SLOTS": layout.JOB_SLOTS,
    "MUX_BEACON_NAME_DIGITS": layout.BEACON_NAME_DIGITS,
    "MUX_BEACON_PROCESSES": layout.BEACON_PROCESSES,
}

pytestmark = pytest.mark.xdist_group("pages-native")  # one worker builds them


@cache
def built(sanitize: str) -> Path:
    """Build the programs under these sanitizers; gives their folder."""
    folder = Path("build") / (sanitize.replace(",", "+") or "plain") / "tests"
    targets = [str(folder / source.stem) for source in (ROOM / "tests").glob("pages_*.c")]
    subprocess.run(["make", "--silent", "-C", str(ROOM), *targets, f"SANITIZE={sanitize}"], check=True, timeout=120)
    return ROOM / folder


@pytest.fixture(params=["", "address,undefined", "thread"], ids=["plain", "asan", "tsan"])
def programs(request: pytest.FixtureRequest) -> Path:
    return built(request.param)


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory of pages, on a tmpfs as in life."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield path


def run(programs: Path, program: str, *arguments: str) -> str:
    """Run a program with all that it starts; gives what it printed."""
    command = [str(programs / program), *arguments]
    if setarch := shutil.which("setarch"):  # ThreadSanitizer's shadow memory collides with some random layouts
        command = [setarch, "-R", *command]
    env = {**os.environ, "TSAN_OPTIONS": f"suppressions={ROOM}/tests/thread.supp"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=DEADLINE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    return out


def test_layouts_of_c_and_python_are_the_same() -> None:
    compiled: dict[str, dict[str, tuple[int, int]]] = {}
    for line in run(built(""), "pages_layout").splitlines():
        name, field, offset, size = line.split()
        compiled.setdefault(name, {})[field] = int(offset), int(size)

    assert {name: value for name, (_, value) in compiled.pop("constant").items()} == CONSTANTS
    assert compiled.keys() == STRUCTURES.keys()
    for name, structure in STRUCTURES.items():
        fields = {entry[0]: getattr(structure, entry[0]) for entry in structure._fields_}
        python = {field: (at.offset, at.size) for field, at in fields.items() if not field.startswith("pad")}
        python["-"] = 0, ctypes.sizeof(structure)
        assert python == compiled[name], name


def test_no_thread_sees_half_of_what_was_written(programs: Path, directory: str) -> None:
    run(programs, "pages_readings", "threads", directory)


def test_writers_that_are_killed_anywhere_keep_no_reader_and_leave_a_whole_gate(programs: Path, directory: str) -> None:
    run(programs, "pages_readings", "killed", directory)


def test_what_is_no_page_reads_as_frozen(programs: Path, directory: str) -> None:
    run(programs, "pages_view", "bad", directory)


def test_a_heartbeat_is_aged_by_the_readers_own_clock(programs: Path, directory: str) -> None:
    run(programs, "pages_view", "heartbeat", directory)


def test_pages_are_exchanged_as_a_whole_under_threads_that_load_from_them(programs: Path, directory: str) -> None:
    run(programs, "pages_view", "replaced", directory)


def test_each_process_of_a_job_has_its_own_slot(programs: Path, directory: str) -> None:
    run(programs, "pages_slots", "claim", directory)


def test_owners_live_as_long_as_their_processes(programs: Path, directory: str) -> None:
    run(programs, "pages_slots", "owners", directory)


def test_a_quota_holds_for_processes_that_race_and_forgets_those_that_were_killed(
    programs: Path, directory: str
) -> None:
    run(programs, "pages_slots", "quota", directory)


def test_a_job_that_truncates_its_page_does_not_die_of_it(programs: Path, directory: str) -> None:
    run(programs, "pages_slots", "truncated", directory)


def test_what_was_spent_is_counted_once_and_kept(programs: Path, directory: str) -> None:
    run(programs, "pages_slots", "spending", directory)


def test_the_online_side_keeps_others_off_while_it_is_active_and_a_little_longer(
    programs: Path, directory: str
) -> None:
    run(programs, "pages_beacon", "rule", directory)


def test_a_beacon_page_is_its_processs_own_and_made_anew_when_it_is_spoilt(programs: Path, directory: str) -> None:
    run(programs, "pages_beacon", "own", directory)


def test_what_is_in_the_way_of_a_beacon_page_harms_nobody(programs: Path, directory: str) -> None:
    run(programs, "pages_beacon", "refused", directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system that is small")
def test_a_full_file_system_refuses_a_beacon_page_before_anybody_counts_in_it(directory: str) -> None:
    mounted = 'mount -t tmpfs -o size=64k none "$1" && exec "$0" full "$1"'
    command = ["unshare", "-m", "sh", "-c", mounted, str(built("") / "pages_beacon"), directory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.returncode, done.stderr) == (0, "")


def test_beacon_pages_are_found_when_they_come_and_forgotten_when_they_go(programs: Path, directory: str) -> None:
    run(programs, "pages_beacon", "found", directory)


def test_what_lies_beside_beacon_pages_and_what_is_cut_harms_no_reader(programs: Path, directory: str) -> None:
    run(programs, "pages_beacon", "garbage", directory)
