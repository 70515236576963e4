"""Simulated GPUs under `muxflow up`, and the commands that look at devices and steer them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from machine import LEASE_S, MUXFLOW, Machine
from muxflow.contracts import JobState
from muxflow.supervisor.hardware import run_directory
from workloads import OnlineService, lost

DEADLINE_S = 20.0
SIMULATE = (
    *("--simulate", "T4", "--simulate", "A100", "--node", "node.1"),
    *("--set", "scheduler.profiling=false"),  # jobs that only sleep would be measured for a minute
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One machine with two simulated GPUs, shared by the tests of this module."""
    one = Machine(tmp_path_factory.mktemp("simulated") / "state")
    try:
        one.start(*SIMULATE)
        yield one
    finally:
        one.stop()


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)
    return found


def devices(machine: Machine) -> dict[str, dict[str, Any]]:
    return {each["gpu"]["kind"]: each for each in machine.json("devices")}


def all_healthy(machine: Machine) -> bool:
    return {each["state"] for each in devices(machine).values()} == {"healthy"}


def submit(machine: Machine, name: str, *, kind: str, command: str = "sleep 600") -> None:
    job = {"name": name, "command": ["sh", "-c", command], "gpu": {"memory": "1GiB", "kinds": [kind]}, "retries": 0}
    machine.json("submit", "-", stdin=json.dumps(job))


def wait_for_state(machine: Machine, job: str, state: JobState) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        record: dict[str, Any] = machine.json("status", job)["record"]
        return record if record["state"] == state.value else None

    found: dict[str, Any] = wait_until(reached, f"{job} is {state.value}")
    return found


def cancel(machine: Machine, job: str) -> None:
    assert machine.run("cancel", job, "--wait").returncode == 0


# The machine


def test_simulated_gpus_are_found_watched_and_take_jobs(machine: Machine) -> None:
    assert machine.ready["watched"]
    assert set(machine.ready["pids"]) == {
        *("server", "mps-0", "mps-1", "scheduler", "profiler", "predictor", "monitor", "evictor", "executor"),
    }
    wait_until(lambda: all_healthy(machine), "both GPUs are healthy")
    submit(machine, "hello", kind="A100", command="echo $CUDA_VISIBLE_DEVICES")
    wait_for_state(machine, "hello", JobState.FINISHED)
    assert machine.run("logs", "hello").stdout.strip() == devices(machine)["A100"]["gpu"]["uuid"]


def test_a_table_for_people_tells_both_gpus(machine: Machine) -> None:
    wait_until(lambda: all_healthy(machine), "both GPUs are healthy")
    head, *rows = machine.run("devices").stdout.splitlines()
    columns = ["NODE", "GPU", "STATE", "ONLINE", "OFFLINE", "BUDGET", "BUSY", "MEMORY", "BECAUSE"]
    assert head.split() == columns
    assert [row.split()[:4] for row in rows] == [
        ["node.1", "T4", "#0", "healthy"],
        ["node.1", "A100", "#1", "healthy"],
    ]


def test_programs_get_the_environment_to_be_served_on_a_gpu(machine: Machine) -> None:
    uuid = devices(machine)["T4"]["gpu"]["uuid"]
    script = 'eval "$("$0" device env 0 --state-dir "$1")" && echo "$CUDA_VISIBLE_DEVICES" && "$2" -m muxflow_device'
    python = str(Path(MUXFLOW).with_name("python"))
    done = subprocess.run(
        ["bash", "-euc", script, MUXFLOW, str(machine.state_dir), python],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    seen, found = done.stdout.splitlines()
    assert seen == uuid
    assert [gpu["uuid"] for gpu in json.loads(found)] == [each["gpu"]["uuid"] for each in machine.json("devices")]
    variables = machine.json("device", "env", "node.1/0")
    assert Path(variables["CUDA_MPS_PIPE_DIRECTORY"], "control").is_socket()


def test_what_dies_of_the_node_is_started_again_and_devices_are_healthy_again(machine: Machine) -> None:
    for name in ("monitor", "evictor", "mps-1"):
        pid = machine.pid(name)
        os.kill(pid, signal.SIGKILL)
        assert machine.report("ended", name=name)["how"] == "was killed by SIGKILL"
        assert machine.report("started", name=name)["pid"] != pid
    wait_until(lambda: all_healthy(machine), "both GPUs are healthy again")


# Operators


def test_a_disabled_gpu_is_cleared_and_takes_nothing_until_it_is_enabled(machine: Machine) -> None:
    wait_until(lambda: all_healthy(machine), "both GPUs are healthy")
    submit(machine, "moved", kind="T4")
    wait_for_state(machine, "moved", JobState.RUNNING)
    done = machine.run("device", "disable", "T4 #0", "--reason", "new fans")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "T4 #0 of node.1: disabled by an operator: new fans",
        "default/moved#1 is stopped there and goes back to the queue",
    ]
    wait_for_state(machine, "moved", JobState.PENDING)
    assert machine.json("status", "moved")["waiting"] == (
        "the only GPU that fits is disabled by an operator: new fans; it is next in the queue"
    )
    evictions = [each["event"] for each in machine.json_lines("alerts") if each["event"].get("job") == "moved"]
    assert [each["cause"] for each in evictions] == ["disabled by an operator: new fans"] * 2
    assert machine.run("device", "enable", "0").stdout.startswith("T4 #0 of node.1 is enabled, and ")
    assert wait_for_state(machine, "moved", JobState.RUNNING)["attempt"] == 2
    cancel(machine, "moved")


def test_an_evicted_job_goes_back_to_the_queue_and_runs_again(machine: Machine) -> None:
    wait_until(lambda: all_healthy(machine), "both GPUs are healthy")
    submit(machine, "again", kind="A100")
    wait_for_state(machine, "again", JobState.RUNNING)
    done = machine.run("evict", "again", "--reason", "to see")
    assert done.stdout.startswith("default/again#1 is stopped on A100 #1 of node.1 and goes back to the queue")
    wait_until(lambda: machine.json("status", "again")["record"]["attempt"] == 2, "a second attempt")
    wait_for_state(machine, "again", JobState.RUNNING)
    cancel(machine, "again")
    refused = machine.run("evict", "again")
    assert (refused.returncode, refused.stderr) == (1, "muxflow: default/again is cancelled: it is on no GPU\n")


def test_a_job_that_waits_is_in_the_queue_and_explained(machine: Machine) -> None:
    wait_until(lambda: all_healthy(machine), "both GPUs are healthy")
    submit(machine, "holds", kind="T4")
    wait_for_state(machine, "holds", JobState.RUNNING)
    submit(machine, "waits", kind="T4")
    wait_for_state(machine, "waits", JobState.PENDING)
    (waiting,) = machine.json("queue")["jobs"]
    assert (waiting["job"], waiting["position"]) == ("waits", 0)
    assert waiting["waiting"] == "the only GPU that fits is busy; it is next in the queue"
    told = machine.run("queue").stdout.splitlines()
    assert told[0].split() == ["POSITION", "JOB", "PRIORITY", "MEMORY", "KINDS", "SINCE", "WHY"]
    assert re.fullmatch(
        r"matched .* ago \(.*\): .* placed, .*; it costs (\d+), and none costs less than \1; .* ms", told[-1]
    )
    story = machine.run("explain", "waits").stdout
    assert re.search(r"^T4 .* 100% .* 1 is busy$", story, re.MULTILINE)
    assert re.search(r"^A100 .* it asks for T4$", story, re.MULTILINE)
    assert machine.json("explain", "holds")["job"]["speed"]["normalized_throughput"] == 1.0
    refused = machine.run("explain", "nobody")
    assert refused.stderr == "muxflow: there is no GPU 'nobody', and there is no job 'nobody' in tenant 'default'\n"
    cancel(machine, "waits")
    cancel(machine, "holds")


def test_the_story_of_a_device_is_told_with_its_causes(machine: Machine) -> None:
    wait_until(lambda: all_healthy(machine), "both GPUs are healthy")
    machine.json("device", "disable", "A100 #1", "--reason", "a look inside")
    told = machine.run("explain", "1").stdout
    assert re.search(r"^healthy when +an operator enables it$", told, re.MULTILINE)
    assert re.search(r"^new jobs +none: disabled by an operator: a look inside$", told, re.MULTILINE)
    machine.json("device", "enable", "A100 #1")
    story = machine.json("explain", "node.1/1")["story"]
    states = [each["state"] for each in story]
    disabled = states.index("disabled")
    assert [state for state, _ in groupby(states)][:2] == ["init", "healthy"]  # a monitor may have been killed in init
    assert story[disabled]["cause"] == "disabled by an operator: a look inside"
    assert "init" in states[disabled:]
    epochs = [each["epoch"] for each in story]
    assert epochs == sorted(set(epochs))


def test_online_workloads_are_declared_listed_and_removed(machine: Machine) -> None:
    add = ("online", "add", "chat", "--gpu", "0", "--match", r"serve\.py", "--latency-target-ms", "50")
    entry = machine.json(*add)["chat"]
    assert entry == {"gpu": devices(machine)["T4"]["gpu"]["uuid"], "match": r"serve\.py", "latency_target_ms": 50.0}
    assert machine.json("online", "list") == {"chat": entry}
    for wrong, message in (
        (("other", "--gpu", "0", "--match", "x"), "T4 #0 of node.1 has chat already"),
        (("other", "--gpu", "7", "--match", "x"), "there is no GPU '7'"),
        (("other", "--gpu", "1", "--match", "("), "is no regular expression"),
    ):
        refused = machine.run("online", "add", *wrong)
        assert refused.returncode in (1, 2)
        assert message in refused.stderr
    assert machine.run("online", "remove", "chat").returncode == 0
    assert machine.json("online", "list") == {}
    assert machine.run("online", "remove", "chat").returncode == 1


def test_a_service_with_the_environment_of_a_gpu_is_seen_there_under_its_name(machine: Machine, tmp_path: Path) -> None:
    machine.json("online", "add", "chat", "--gpu", "0", "--match", "online_service")
    service = OnlineService(
        tmp_path / "requests.jsonl", machine.json("device", "env", "0"), rates_per_s=[50.0], seconds=DEADLINE_S
    )
    try:
        service.ready()
        wait_until(lambda: devices(machine)["T4"]["workload"] == "chat", "the service is known by its name")
        wait_until(lambda: (devices(machine)["T4"]["sample"]["online_activity_pct"] or 0) > 0, "its activity is seen")
        assert re.search(r"^T4 #0 +\w+ +chat +[1-9]\d*% ", machine.run("top", "--once").stdout, re.MULTILINE)
        assert devices(machine)["A100"]["workload"] is None
        service.end()
    finally:
        service.kill()
        machine.run("online", "remove", "chat")
    assert lost(service.requests()) == []


def test_users_and_observers_do_what_is_theirs(machine: Machine) -> None:
    def as_(role: str) -> tuple[str, str]:
        return ("--credentials", str(machine.state_dir / f"credentials/{role}.nk"))

    assert machine.run("devices", *as_("observer")).returncode == 0
    assert machine.run("top", "--once", *as_("observer")).returncode == 0
    for role, command in (
        ("observer", ("device", "disable", "0")),
        ("user-default", ("devices",)),
        ("user-default", ("evict", "hello")),
    ):
        refused = machine.run(*command, *as_(role))
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), command


# Top


def _log_in() -> None:
    """Make the terminal on standard input that of the process: it hears of its size and its end."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Screen:
    """A command on a terminal of its own."""

    def __init__(self, *command: str, columns: int = 80, rows: int = 24) -> None:
        self._master, self._slave = os.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self._slave)
        self.shown = ""
        self.process = subprocess.Popen(
            command,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**os.environ, "TERM": "xterm-256color"},
            preexec_fn=_log_in,  # noqa: PLW1509 - nothing here has threads
        )

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def until(self, text: str) -> str:
        """Read until this is shown; gives what was shown since the last call."""
        deadline, since = time.monotonic() + DEADLINE_S, len(self.shown)
        while text not in self.shown[since:]:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} is not shown: {self.shown[since:]!r}"
            self.shown += os.read(self._master, 65536).decode(errors="replace")
        return self.shown[since:]

    def ended(self) -> int:
        """Read on until the command has ended; gives its exit code."""
        deadline = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on: {self.shown!r}"
            if select.select([self._master], [], [], 0.05)[0]:
                self.shown += os.read(self._master, 65536).decode(errors="replace")
        while select.select([self._master], [], [], 0)[0]:
            self.shown += os.read(self._master, 65536).decode(errors="replace")
        return self.process.returncode

    def as_before(self) -> bool:
        """Whether the terminal is as it was: its own screen, cursor, echo and lines."""
        own = self.shown.count("\x1b[?1049h") == self.shown.count("\x1b[?1049l")
        cursor = self.shown.rfind("\x1b[?25h") > self.shown.rfind("\x1b[?25l")
        return own and cursor and termios.tcgetattr(self._slave) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


@pytest.fixture
def top(machine: Machine) -> Iterator[Screen]:
    screen = Screen(MUXFLOW, "top", "--state-dir", str(machine.state_dir))
    try:
        screen.until("A100 #1")
        yield screen
    finally:
        screen.close()


def test_top_has_a_screen_of_its_own_until_q_is_pressed(top: Screen) -> None:
    assert "\x1b[?1049h" in top.shown
    top.press("q")
    assert top.ended() == 0
    assert top.as_before()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)], ids=str)
def test_a_signal_ends_top_and_leaves_the_terminal_as_it_was(top: Screen, number: signal.Signals, code: int) -> None:
    top.process.send_signal(number)
    assert top.ended() == code
    assert top.as_before()
    assert "Traceback" not in top.shown


def test_top_follows_the_size_of_its_terminal(top: Screen) -> None:
    for columns, rows in ((40, 10), (10, 2), (200, 50)):
        top.resize(columns, rows)
        top.until("MuxFlow")
    top.until("2 GPUs on node.1")
    top.press("q")
    assert top.ended() == 0


def test_top_outlives_the_server(machine: Machine, top: Screen) -> None:
    os.kill(machine.pid("server"), signal.SIGKILL)
    machine.report("started", name="server")
    submit_when_possible(machine, "seen-after")
    top.until("seen-after#1")
    top.press("q")
    assert top.ended() == 0
    assert top.as_before()
    assert "Traceback" not in top.shown
    cancel(machine, "seen-after")


def submit_when_possible(machine: Machine, name: str) -> None:
    job = json.dumps({"name": name, "command": ["sleep", "600"], "gpu": {"memory": "1GiB"}})
    wait_until(lambda: machine.run("submit", "-", stdin=job).returncode == 0, "a submission is accepted")
    wait_for_state(machine, name, JobState.RUNNING)


def test_where_nobody_looks_top_prints_frames_or_objects(machine: Machine) -> None:
    once = machine.run("top", "--once").stdout
    assert re.search(r"^T4 #0 +\w+", once, re.MULTILINE)
    frames = machine.follow("top", "--json")
    try:
        assert frames.stdout is not None
        first, second = (json.loads(frames.stdout.readline()) for _ in range(2))
        assert len(first["devices"]) == 2
        assert first["time_ns"] < second["time_ns"]
    finally:
        frames.terminate()
        frames.communicate(timeout=DEADLINE_S)


# The end


def test_ctrl_c_leaves_nothing_and_the_next_time_has_the_same_gpus(own_machine: Machine) -> None:
    own_machine.start(*SIMULATE)
    run_dir = run_directory(own_machine.state_dir)
    assert (run_dir / "simgpu").is_dir()
    before = [each["gpu"] for each in own_machine.json("devices")]
    submit(own_machine, "long", kind="T4")
    wait_for_state(own_machine, "long", JobState.RUNNING)
    own_machine.process.send_signal(signal.SIGINT)
    own_machine.process.wait(DEADLINE_S)
    assert own_machine.process.returncode == 0
    assert own_machine.processes() == {}
    assert not run_dir.exists()

    own_machine.start("--node", "node.1")
    assert [each["gpu"] for each in own_machine.json("devices")] == before
    assert wait_for_state(own_machine, "long", JobState.RUNNING)["attempt"] == 2


def test_a_killed_supervisor_leaves_no_process_and_the_next_one_takes_over(own_machine: Machine) -> None:
    own_machine.start(*SIMULATE)
    submit(own_machine, "orphan", kind="T4")
    wait_for_state(own_machine, "orphan", JobState.RUNNING)
    own_machine.process.kill()
    own_machine.wait_gone(LEASE_S + DEADLINE_S)
    own_machine.start("--node", "node.1")
    wait_until(lambda: all_healthy(own_machine), "both GPUs are healthy")
    wait_for_state(own_machine, "orphan", JobState.RUNNING)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--simulate", "T5"), 1, "T5"),
        (("--simulate", "T4", "--gpu", "T4:1GiB"), 2, "give one of --real, --simulate, --gpu and --gpus"),
    ],
)
def test_gpus_that_cannot_be_simulated_are_told_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    state = tmp_path / "state"
    done = subprocess.run(
        [MUXFLOW, "up", "--state-dir", str(state), *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert message in done.stderr
    assert not run_directory(state).exists()
