"""Names of processes, and of those in other time namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from muxflow_device.pages import DevicePage
from muxflow_device.processes import lives, names_within, owner_of, pid_of
from muxflow_device.rundir import DeviceDirectory

STALE_MS = 60_000
DEADLINE_S = 20.0
APART = ("unshare", "--time", "--boottime", "100000", "--fork")


def test_a_process_is_named_for_good() -> None:
    owner = owner_of(os.getpid())
    assert pid_of(owner) == os.getpid()
    assert lives(owner)
    assert not lives(owner + (100 << 32))
    assert owner_of(2**22 + 1) == 0


def test_processes_in_another_time_namespace_have_the_same_names() -> None:
    program = "import os; from muxflow_device.processes import *; print(owner_of(os.getpid()), owner_of(os.getppid()))"
    command = [*APART, sys.executable, "-c", program]
    made = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    parent = owner_of(made.pid)
    out, err = made.communicate(timeout=DEADLINE_S)
    if made.returncode != 0:
        pytest.skip(f"no time namespace to be had: {err.strip()}")
    own, seen_parent = (int(number) for number in out.split())
    assert abs((seen_parent >> 32) - (parent >> 32)) <= 1
    assert own >> 32 < parent + (1000 << 32) >> 32, "as if it had been started in our time"


@pytest.mark.parametrize("proc", [(), ("--mount-proc",), ("--mount-proc", "--time", "--boottime", "100000")])
def test_a_process_in_a_pid_namespace_of_its_own_is_known_by_its_name_there(proc: tuple[str, ...]) -> None:
    program = (
        "import os, sys; from muxflow_device.processes import *\n"
        "print(owner_of(os.getpid()), flush=True); sys.stdin.read()"
    )
    command = ["unshare", "--pid", "--fork", *proc, sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        named = parent.stdout.readline()
        if not named:
            pytest.skip(f"no such namespaces to be had: {parent.stderr.read().strip()}")
        (pid,) = map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
        assert pid_of(int(named)) == 1
        assert int(named) in names_within(pid)
        parent.communicate(timeout=DEADLINE_S)


def test_a_process_in_our_pid_namespace_has_no_other_name() -> None:
    assert names_within(os.getpid()) == frozenset()
    assert names_within(2**22 + 1) == frozenset()


def test_a_monitor_in_another_time_namespace_is_alive_while_its_heartbeat_moves(
    directory: DeviceDirectory,
) -> None:
    program = (
        "import sys, time; from pathlib import Path; from muxflow.contracts import DeviceCondition\n"
        "from muxflow_decisions.device.gate import Gate, GateState\n"
        "from muxflow_device.pages import *; from muxflow_device.rundir import DeviceDirectory\n"
        f"writer = DevicePageWriter(DeviceDirectory(Path(sys.argv[1])), uuid='GPU-1', stale_after_ms={STALE_MS})\n"
        "writer.store_gate(Gate(state=GateState.OPEN), epoch=1)\n"
        "for _ in sys.stdin:\n"
        "    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)\n"
        "    writer.write(DeviceReport(time_boottime_ns=now_ns, condition=DeviceCondition.INIT, since_boottime_ns=1))\n"
        "    writer.beat(); print('beat', flush=True)\n"
    )
    command = [
        "unshare",
        "--time",
        "--boottime",
        "100000",
        "--fork",
        sys.executable,
        "-c",
        program,
        str(directory.path),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as monitor:
        assert monitor.stdin is not None
        assert monitor.stdout is not None
        assert monitor.stderr is not None

        def beat() -> bool:
            monitor.stdin.write("\n")  # type: ignore[union-attr]
            return monitor.stdout.readline() == "beat\n"  # type: ignore[union-attr]

        page = DevicePage(directory)
        if not beat():
            pytest.skip(f"no time namespace to be had: {monitor.stderr.read().strip()}")
        assert not page.look().fresh, "its clock says nothing to us"
        assert beat()
        assert page.look().fresh
        monitor.stdin.close()
