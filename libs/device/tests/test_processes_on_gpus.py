from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from muxflow_device.attribution.processes import Crowd, ProcessTable, Side
from muxflow_device.processes import owner_of
from muxflow_device.readings.look import GpuProcess


@contextmanager
def program(code: str = "import sys; sys.stdin.read()", **env: str) -> Iterator[subprocess.Popen[str]]:
    """A process that lives until its standard input ends, and has said that it runs."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"print(0, flush=True); {code}"],
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        process.communicate()


def sort(table: ProcessTable, *pids: int, offline: tuple[int, ...] = ()) -> Crowd:
    return table.sort([GpuProcess(pid, 2**20) for pid in pids], offline=offline)


def side(crowd: Crowd, pid: int) -> Side:
    return next(process.side for process in crowd.processes if process.pid == pid)


@pytest.fixture
def table() -> ProcessTable:
    return ProcessTable(lambda command: "serve.py" in command)


def test_owners_of_slots_and_processes_of_an_attempt_are_offline(table: ProcessTable) -> None:
    with program() as owner, program(MUXFLOW_RUN_ID="r") as marked, program() as stranger:
        crowd = sort(table, owner.pid, marked.pid, stranger.pid, offline=(owner.pid,))
        assert side(crowd, owner.pid) is Side.OFFLINE
        assert side(crowd, marked.pid) is Side.OFFLINE
        assert side(crowd, stranger.pid) is Side.UNKNOWN


def test_a_child_without_the_mark_is_offline_because_its_parent_is(table: ProcessTable) -> None:
    child = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'input()'], env={}); "
    with program(child + "print(p.pid, flush=True); sys.stdin.read()", MUXFLOW_RUN_ID="r") as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert side(sort(table, pid), pid) is Side.OFFLINE


SHIM = """
import ctypes, os, sys
os.chdir(sys.argv[1])
ctypes.CDLL(None).prctl(15, b"muxflow-shim", 0, 0, 0)
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
if os.fork() == 0:
    if os.fork() == 0:
        program = (
            "import ctypes, os, sys; os.chdir('/'); ctypes.CDLL(None).prctl(15, b'muxflow-shim', 0, 0, 0); "
            "print(os.getpid(), flush=True); sys.stdin.read()"
        )
        os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", program], {})
    os._exit(0)
os.wait()
sys.stdin.read()
os.wait()
"""
"""As the executor's shim: below it a program that has cleared its environment, has no other parent any more, and calls
itself a shim too."""


def test_a_process_below_a_shim_is_its_attempts_whatever_it_has_done_to_its_environment(
    table: ProcessTable, tmp_path: Path
) -> None:
    attempt = tmp_path / "default.train.1"
    attempt.mkdir()
    command = [sys.executable, "-I", "-S", "-c", SHIM, str(attempt)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shim:
        assert shim.stdout is not None
        pid = int(shim.stdout.readline())
        (process,) = sort(table, pid).processes
        assert (process.side, process.job, process.owner) == (Side.OFFLINE, "default.train.1", owner_of(pid))
        shim.communicate()
    (stranger,) = sort(table, os.getpid()).processes
    assert stranger.job is None


def test_the_declared_workload_is_known_by_its_command_line(table: ProcessTable) -> None:
    with program("'serve.py'; import sys; sys.stdin.read()") as service, program() as stranger:
        crowd = sort(table, service.pid, stranger.pid)
        assert side(crowd, service.pid) is Side.ONLINE
        assert [process.pid for process in crowd.others] == [service.pid, stranger.pid]


def test_a_slot_makes_no_offline_process_of_the_declared_workload(table: ProcessTable) -> None:
    with program("'serve.py'; import sys; sys.stdin.read()") as service:
        assert side(sort(table, service.pid, offline=(service.pid,)), service.pid) is Side.ONLINE


def test_a_job_that_looks_like_the_declared_workload_is_offline_all_the_same(table: ProcessTable) -> None:
    with program("'serve.py'; import sys; sys.stdin.read()", MUXFLOW_RUN_ID="r") as job:
        assert side(sort(table, job.pid), job.pid) is Side.OFFLINE


def test_an_unknown_process_is_asked_again_and_named(table: ProcessTable) -> None:
    with program() as late:
        assert side(sort(table, late.pid), late.pid) is Side.UNKNOWN
        crowd = sort(table, late.pid, offline=(late.pid,))
        assert side(crowd, late.pid) is Side.OFFLINE
        assert crowd.processes[0].name.startswith("python")


def test_a_process_that_has_gone_meanwhile_is_unknown(table: ProcessTable) -> None:
    with program() as gone:
        pass
    assert side(sort(table, gone.pid), gone.pid) is Side.UNKNOWN


def test_a_process_that_has_ended_stays_on_its_side_while_nvml_lists_it(table: ProcessTable) -> None:
    with program(MUXFLOW_RUN_ID="r") as job:
        assert side(sort(table, job.pid), job.pid) is Side.OFFLINE
    for _ in range(2):
        assert side(sort(table, job.pid), job.pid) is Side.OFFLINE
    assert not sort(table).processes
    assert side(sort(table, job.pid), job.pid) is Side.UNKNOWN


def test_what_is_declared_anew_counts_for_those_who_are_there() -> None:
    declared: list[str] = []
    table = ProcessTable(lambda command: any(word in command for word in declared))
    with program("'first'; import sys; sys.stdin.read()") as service:
        declared.append("first")
        assert side(sort(table, service.pid), service.pid) is Side.ONLINE
        declared.clear()
        table.forget()
        assert side(sort(table, service.pid), service.pid) is Side.UNKNOWN
