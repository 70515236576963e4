"""Bad surroundings: one clear line each, and afterwards everything goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clock import Clock
from disk import mounted
from machine import MUXFLOW, Machine
from muxflow.bus import Bus, Message, PayloadTooLarge
from muxflow.bus.credentials import Principal
from muxflow.client import Client
from muxflow.contracts import GpuRequest, JobSpec, JobSubmit, Role
from muxflow.contracts.catalogue import (
    JOBS_CANCELLED,
    JOBS_FAILED,
    JOBS_FINISHED,
    JOBS_SUBMIT,
    RUNS_EXITED,
)
from plain_client import PlainClient, RefusedError
from testimony import lives, overlaps
from world import WITNESS, World, running

GPU = ("--gpu", "T4:16GiB")
HOUR_S = 3600
DEADLINE_S = 30.0


def job(name: str, command: str = "true", **fields: object) -> str:
    """Make a job file; JSON is YAML."""
    return json.dumps({"name": name, "command": ["sh", "-c", command], "gpu": {"memory": "1GiB"}, **fields})


def refused_start(state_dir: Path, *arguments: str) -> str:
    """Run `muxflow up` where it cannot run; gives the one line that it says."""
    done = subprocess.run(
        [MUXFLOW, "up", "--state-dir", str(state_dir), *GPU, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.removeprefix("muxflow: ").strip()


def runs_jobs(machine: Machine, name: str) -> None:
    (result,) = machine.json("submit", "-", "--wait", stdin=job(name))
    assert result["state"] == "finished", result


def says_no_traceback(logs: Path) -> None:
    for log in logs.glob("*.log"):
        assert "Traceback" not in log.read_text(errors="replace"), log


# Starting


def test_a_taken_port_is_named_and_taken_when_it_is_free(own_machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = refused_start(own_machine.state_dir, "--port", port)
        assert line == f"port {port} is taken; give another one with --port, or none"
    own_machine.start(*GPU, "--port", port)
    assert own_machine.ready["server"] == f"nats://127.0.0.1:{port}"


@contextlib.contextmanager
def write_protected(place: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A directory where nothing can be written: what the system says of that, and how to end it."""
    if os.geteuid() == 0:  # to whom permissions do not apply
        with mounted(place, "size=64m,ro") as disk:
            yield "Read-only file system", lambda: disk.remount("rw")
    else:
        place.mkdir(mode=0o500)
        yield "Permission denied", lambda: place.chmod(0o700)


def test_a_read_only_directory_is_named_and_used_when_it_is_writable(tmp_path: Path) -> None:
    with write_protected(tmp_path / "place") as (reason, allow), contextlib.ExitStack() as stack:
        machine = Machine(tmp_path / "place/state")
        line = refused_start(machine.state_dir)
        assert line == f"state directory {machine.state_dir}: {reason}; give another one with --state-dir"
        allow()
        stack.callback(machine.stop)
        machine.start(*GPU)


# The disk


def test_a_disk_that_is_too_small_is_told_at_the_start(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=16m"):
        line = refused_start(tmp_path / "disk/state")
    assert "MiB are free on its disk, and the server's store needs" in line
    assert "free some space" in line


def test_a_full_disk_is_told_and_what_was_submitted_runs_when_there_is_room(tmp_path: Path) -> None:
    file = tmp_path / "during.yaml"
    file.write_text(job("during", env={"TEXT": "x" * 60_000}))
    with mounted(tmp_path / "disk", "size=64m") as disk, contextlib.ExitStack() as stack:
        machine = Machine(disk.path / "state")
        stack.callback(machine.stop)
        machine.start(*GPU)
        runs_jobs(machine, "before")
        disk.fill()
        submitting = machine.follow("submit", str(file), "--wait")
        stack.callback(submitting.kill)
        assert submitting.stderr is not None
        stuck = machine.report("stuck")
        assert (stuck["name"], stuck["reason"]) == (
            "server",
            f"the disk is full, nothing is stored ({machine.state_dir / 'nats'})",
        )
        notice = submitting.stderr.readline()
        assert notice == "during: the server has not stored it yet; trying on, Ctrl-C gives up\n"
        assert submitting.poll() is None
        disk.free()
        machine.report("restarting", name="server")
        machine.report("started", name="server")
        output, errors = submitting.communicate(timeout=DEADLINE_S)
        assert (submitting.returncode, errors) == (0, "")
        assert output.splitlines()[-1] == "default/during: finished"
        runs_jobs(machine, "after")
        assert [each["event"] for each in machine.reports].count("stuck") == 1
        says_no_traceback(machine.state_dir / "logs")


# Clocks


class Watched:
    """Jobs of a world that write diaries, and every event that ends one."""

    def __init__(self, world: World, user: Bus) -> None:
        self.world = world
        self.user = user
        self.terminal: Counter[str] = Counter()
        self.times_ns: dict[str, list[int]] = {}
        """Kind of event to what the clock of its publisher said."""
        self._diaries = world.root / "diaries"
        self._diaries.mkdir()
        self._changed = asyncio.Condition()

    async def note(self, message: Message[Any]) -> None:
        async with self._changed:
            name = message.subject.name
            self.times_ns.setdefault(name, []).append(message.event.time_ns)
            if name in ("jobs.finished", "jobs.failed", "jobs.cancelled"):
                self.terminal[message.names["job"]] += 1
            self._changed.notify_all()

    async def submit(self, name: str, duration_s: float) -> None:
        command = (sys.executable, "-I", "-S", str(WITNESS), str(self.diary(name)), str(duration_s))
        spec = JobSpec(command=command, gpu=GpuRequest(memory_bytes=2**30), stop_grace_s=0.2)
        await self.user.publish(JOBS_SUBMIT, JobSubmit(spec=spec), tenant="default", job=name)

    def diary(self, name: str) -> Path:
        return self._diaries / name

    async def all_ended(self, names: list[str]) -> None:
        """Wait for it, and judge: one terminal event each, no two attempts at once, an attempt that came to its end."""
        try:
            async with self._changed, asyncio.timeout(DEADLINE_S):
                while not all(self.terminal[name] for name in names):
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"not ended: {[name for name in names if not self.terminal[name]]}\n{self._logs()}")
        assert {name: count for name, count in self.terminal.items() if count != 1} == {}
        assert [line for name in names for line in overlaps(self.diary(name))] == []
        assert [name for name in names if not any(life.ended for life in lives(self.diary(name)))] == []

    def _logs(self) -> str:
        return "\n".join((self.world.root / f"{name}.log").read_text()[-2000:] for name in self.world.services)


@contextlib.asynccontextmanager
async def watched(root: Path) -> AsyncIterator[Watched]:
    env = {"MUXFLOW_SCHEDULER__RETRY__FIRST_NS": "100000000", "MUXFLOW_SCHEDULER__RETRY__MAX_LOSSES": "1000"}
    async with (
        running(root, nodes={"node-a": 4}, env=env) as world,
        await world.connect(Principal(role=Role.USER, bound_to="default")) as user,
        await world.connect(Principal(role=Role.OPERATOR)) as operator,
    ):
        jobs = Watched(world, user)
        kinds = (JOBS_FINISHED, JOBS_FAILED, JOBS_CANCELLED, RUNS_EXITED)
        await operator.read(kinds, jobs.note, start="all")
        yield jobs


async def start_again(world: World, service: str, clock: Clock) -> None:
    """Have a service use a clock."""
    world.services[service].kill()
    if service == "scheduler":
        world.add_scheduler(env=clock.env)
    else:
        await world.proxies[service].stop()
        await world.add_executor(service, env=clock.env)


def lose_shims(world: World) -> None:
    """Kill them, so that their jobs get another attempt."""
    for pid in world.shims("node-a"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("service", "publishes"), [("scheduler", "jobs.finished"), ("node-a", "runs.exited")])
async def test_a_clock_that_is_set_back_one_hour_changes_nothing(tmp_path: Path, service: str, publishes: str) -> None:
    clock = Clock(tmp_path / "clock")
    env = clock.env
    assert env
    async with watched(tmp_path) as jobs:
        await start_again(jobs.world, service, clock)
        await jobs.submit("first", 0)
        await jobs.all_ended(["first"])
        early = [f"early-{number}" for number in range(4)]
        late = [f"late-{number}" for number in range(6)]
        for name in early:
            await jobs.submit(name, 1)
        async with asyncio.timeout(DEADLINE_S):
            while not lives(jobs.diary("early-0")):
                await asyncio.sleep(0.02)
        clock.set_by(f"-{HOUR_S}")
        lose_shims(jobs.world)
        for name in late:
            await jobs.submit(name, 0.1)
        await jobs.all_ended(early + late)
        assert len(lives(jobs.diary("early-0"))) > 1, "it had a second attempt"
        ages_s = [(time.time_ns() - time_ns) / 1e9 for time_ns in jobs.times_ns[publishes]]
        assert min(ages_s) < HOUR_S / 2 < max(ages_s), "its clock was set back meanwhile"
    says_no_traceback(tmp_path)


# A server that does not last


async def test_jobs_survive_a_server_that_is_killed_every_second(tmp_path: Path) -> None:
    async with watched(tmp_path) as jobs:
        (server,) = jobs.world.servers
        names = [f"job-{number}" for number in range(50)]

        async def submit_all() -> None:
            for name in names:
                await jobs.submit(name, 0.02)
                await asyncio.sleep(0.28)

        submitting = asyncio.create_task(submit_all())
        for _ in range(15):
            await asyncio.sleep(1)
            await server.kill()
            await server.start()
        async with asyncio.timeout(DEADLINE_S):
            await submitting
        await jobs.all_ended(names)
    says_no_traceback(tmp_path)


# Large messages


def test_a_job_just_under_the_limits_runs(machine: Machine) -> None:
    env = {"FIRST": "x" * 131_000, "SECOND": "y" * 130_000}
    done = machine.run("submit", "-", "--wait", stdin=job("large", "echo ${#FIRST} ${#SECOND}", env=env))
    assert done.returncode == 0, done.stderr
    assert machine.run("logs", "large").stdout == "131000 130000\n"


@pytest.mark.parametrize(
    ("name", "sizes", "reason"),
    [
        ("long-text", [131_072], "spec.env.V0: is longer than 131,071 bytes"),
        ("long-spec", [131_000, 131_000, 1_000], "and at most 262,144 are allowed"),
        ("megabyte", [100_000] * 9, "and at most 262,144 are allowed"),
    ],
)
def test_a_job_above_them_is_rejected_with_the_reason(
    machine: Machine, name: str, sizes: list[int], reason: str
) -> None:
    env = {f"V{number}": "x" * size for number, size in enumerate(sizes)}
    done = machine.run("submit", "-", stdin=job(name, env=env))
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (1, 1, "")
    assert done.stdout.startswith(f"default/{name}: rejected: ")
    assert reason in done.stdout


def test_a_job_file_larger_than_any_job_is_told_in_one_line(machine: Machine) -> None:
    done = machine.run("submit", "-", stdin=job("huge", env={"V": "x" * 1_000_000}))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "muxflow: standard input: larger than 1000000 bytes\n"


@pytest.mark.parametrize(
    ("size", "reason"), [(1_100_000, "message size exceeds maximum allowed"), (2_200_000, "the server takes 2097152")]
)
async def test_a_submission_larger_than_the_server_takes_is_an_error_of_its_own(
    machine: Machine, size: int, reason: str
) -> None:
    spec = JobSpec(name="huge", command=("true",), env={"V": "x" * size}, gpu=GpuRequest(memory_bytes=2**30))
    async with Client.connect(state_dir=machine.state_dir) as client:
        with pytest.raises(PayloadTooLarge, match=reason) as error:
            await asyncio.wait_for(client.submit(spec), DEADLINE_S)
        assert "\n" not in str(error.value)
        after = msgspec.structs.replace(spec, name=f"after-{size}", env={})
        assert (await asyncio.wait_for((await client.submit(after)).outcome(), DEADLINE_S)).succeeded


def test_a_megabyte_of_nonsense_is_kept_and_more_is_refused_while_all_go_on(machine: Machine) -> None:
    subject = "muxflow.jobs.submit.default.nonsense"
    nonsense = b"\xff" * (2**20 - 4096)
    with PlainClient(machine.state_dir) as client:
        client.publish(subject, nonsense)
    with PlainClient(machine.state_dir) as client, pytest.raises((RefusedError, ConnectionError)):
        client.publish(subject, b"\xff" * (2**21 + 1))
    deadline = time.monotonic() + DEADLINE_S
    while not (letters := machine.json("dead", "list")):
        assert time.monotonic() < deadline
    assert [each["letter"]["subject"] for each in letters] == [subject]
    runs_jobs(machine, "after-nonsense")
    assert {name: machine.pid(name) for name in machine.ready["pids"]} == machine.ready["pids"]
    assert all(Path(f"/proc/{pid}").exists() for pid in machine.ready["pids"].values())
    says_no_traceback(machine.state_dir / "logs")
