"""The supervisor keeps programs running, with a growing pause, and ends them in time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from muxflow.supervisor import journal
from muxflow.supervisor.processes import Keeper, Program, Readiness, StopCommand, free_port, next_delay_s
from muxflow.supervisor.reports import Ended, Report, Started

DEADLINE_S = 10.0


def test_the_pause_doubles_up_to_ten_seconds_and_starts_anew_after_a_calm_half_minute() -> None:
    delays = [next_delay_s(0, 0.1)]
    for _ in range(7):
        delays.append(next_delay_s(delays[-1], 0.1))
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])
    assert next_delay_s(10, 30) == pytest.approx(0.2)


def test_a_preferred_port_is_taken_unless_somebody_has_it() -> None:
    port = free_port()
    assert free_port(port) == port


class Kept:
    """A keeper and what it reported."""

    def __init__(self, program: Program) -> None:
        self.reports: list[Report] = []
        self._news = asyncio.Event()
        self.keeper = Keeper(program, self._take)

    def _take(self, report: Report) -> None:
        self.reports.append(report)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def starts(self) -> list[Started]:
        return [report for report in self.reports if isinstance(report, Started)]

    def ends(self) -> list[Ended]:
        return [report for report in self.reports if isinstance(report, Ended)]


@asynccontextmanager
async def kept(tmp_path: Path, script: str, **settings: object) -> AsyncIterator[Kept]:
    program = Program(name="it", argv=("sh", "-c", script), port=0, log=tmp_path / "it.log")
    one = Kept(msgspec.structs.replace(program, **settings))
    await one.keeper.start()
    try:
        yield one
    finally:
        one.keeper.hurry()
        await one.keeper.stop()


async def test_a_killed_program_runs_again_and_its_end_is_told(tmp_path: Path) -> None:
    async with kept(tmp_path, "echo up; exec sleep 60") as one:
        first = one.starts()[0].pid
        os.kill(first, signal.SIGKILL)
        await one.until(lambda: len(one.starts()) == 2)
        assert one.ends()[0].how == "was killed by SIGKILL"
        assert one.keeper.pid not in (None, first)


async def test_the_last_line_of_the_log_is_told_with_the_end(tmp_path: Path) -> None:
    async with kept(tmp_path, "echo first; echo 'settings.toml: leas_s: unknown key' >&2; exit 1") as one:
        await one.until(lambda: len(one.ends()) == 1)
        assert one.ends()[0].how == "ended with exit code 1"
        assert one.ends()[0].last_words == "settings.toml: leas_s: unknown key"


@pytest.mark.parametrize(
    "script",
    [
        "echo settings are wrong; kill -KILL $$",
        """echo '{"event": "starting", "level": "info"}'; exit 1""",
        "echo '[7] 2025/01/31 10:00:00.000000 [INF] Server is ready'; exit 1",
    ],
)
async def test_a_line_that_is_not_the_cause_is_not_told_with_the_end(tmp_path: Path, script: str) -> None:
    async with kept(tmp_path, script) as one:
        await one.until(lambda: len(one.ends()) == 1)
        assert one.ends()[0].last_words == ""


def test_an_error_in_several_lines_is_told_in_one(tmp_path: Path) -> None:
    log = tmp_path / "it.log"
    log.write_text(json.dumps({"event": "failed", "level": "error", "error": "first\n\n  second"}) + "\n\n")
    assert journal.complaint(log) == "failed: first second"


async def test_a_program_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    binary = tmp_path / "program"
    binary.write_text("#!/bin/sh\nexit 7\n")
    binary.chmod(0o700)
    async with kept(tmp_path, "", argv=(str(binary),)) as one:
        await one.until(lambda: len(one.ends()) == 1)
        binary.unlink()
        await one.until(lambda: len(one.ends()) == 2)
        assert [end.how for end in one.ends()] == ["ended with exit code 7", "could not be started"]


async def test_stopping_sends_the_programs_own_signal_and_waits(tmp_path: Path) -> None:
    script = "trap 'echo drained; exit 0' INT; echo ready; while :; do sleep 0.05; done"
    async with kept(tmp_path, script, stop_signal=signal.SIGINT, stop_patience_s=None) as one:
        await until_logged(tmp_path / "it.log", "ready")
        await one.keeper.stop()
        assert (tmp_path / "it.log").read_text() == "ready\ndrained\n"
        assert one.keeper.pid is None
        assert not one.ends(), "a stop that was asked for is no failure"


async def test_a_program_that_does_not_stop_is_killed_when_patience_ends(tmp_path: Path) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    async with kept(tmp_path, script, stop_patience_s=0.1) as one:
        await until_logged(tmp_path / "it.log", "ready")
        await asyncio.wait_for(one.keeper.stop(), DEADLINE_S)
        assert one.keeper.pid is None


async def test_hurrying_ends_a_wait_without_bound(tmp_path: Path) -> None:
    script = "trap '' INT; echo ready; while :; do sleep 0.05; done"
    async with kept(tmp_path, script, stop_signal=signal.SIGINT, stop_patience_s=None) as one:
        await until_logged(tmp_path / "it.log", "ready")
        stopping = asyncio.ensure_future(one.keeper.stop())
        one.keeper.hurry()
        await asyncio.wait_for(stopping, DEADLINE_S)
        assert one.keeper.pid is None


async def test_stopping_during_a_pause_starts_nothing_more(tmp_path: Path) -> None:
    async with kept(tmp_path, "exit 1") as one:
        await one.until(lambda: len(one.ends()) == 1)
        await asyncio.wait_for(one.keeper.stop(), DEADLINE_S)
        assert len(one.starts()) == 1


async def test_a_program_is_ready_when_its_readyz_says_so(tmp_path: Path) -> None:
    script = f"""exec {sys.executable} -c '
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ok = os.path.exists("{tmp_path}/ready")
        self.send_response(200 if ok else 503)
        self.end_headers()
        self.wfile.write(b"ok" if ok else b"bus: not connected")
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
print("listening", flush=True)
server.serve_forever()
'"""
    async with kept(tmp_path, script, port_variable="PORT") as one:
        await until_logged(tmp_path / "it.log", "listening")
        assert await one.keeper.ready() == "bus: not connected"
        (tmp_path / "ready").touch()
        assert await one.keeper.ready() is None


async def test_a_nats_server_is_ready_when_it_greets(tmp_path: Path) -> None:
    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO {}\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server, kept(tmp_path, "exec sleep 60", readiness=Readiness.NATS) as one:
        one.keeper.program = msgspec.structs.replace(one.keeper.program, port=server.sockets[0].getsockname()[1])
        assert await one.keeper.ready() is None


def test_a_program_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, pathlib
from muxflow.supervisor.processes import Keeper, Program
async def main():
    program = Program(name="it", argv=("sleep", "60"), port=0, log=pathlib.Path({str(tmp_path)!r}) / "it.log")
    await Keeper(program, lambda report: print(report.pid, flush=True)).start()
    await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        child = os.pidfd_open(int(supervisor.stdout.readline()))
        supervisor.kill()
    try:
        wait_gone(child)
    finally:
        os.close(child)


def wait_gone(pidfd: int) -> None:
    import select

    assert select.select([pidfd], [], [], DEADLINE_S)[0], "the child outlives its supervisor"


async def until_logged(log: Path, line: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not log.exists() or line not in log.read_text():
            await asyncio.sleep(0.01)


async def test_a_program_with_a_command_to_stop_it_is_asked_by_that_before_any_signal(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    os.mkfifo(asked)
    command = StopCommand(argv=("sh", "-c", 'cat >"$ASKED"'), stdin="quit\n")
    script = "trap 'echo signal' TERM; echo ready; read -r what <\"$ASKED\"; echo $what"
    async with kept(tmp_path, script, env={"ASKED": str(asked)}, stop_command=command) as one:
        await until_logged(tmp_path / "it.log", "ready")
        await one.keeper.stop()
        assert (tmp_path / "it.log").read_text() == "ready\nquit\n"


async def test_a_program_whose_command_cannot_stop_it_gets_the_signal(tmp_path: Path) -> None:
    command = StopCommand(argv=(str(tmp_path / "missing"),), stdin="")
    async with kept(tmp_path, "exec sleep 60", stop_command=command) as one:
        await one.keeper.stop()
        assert one.keeper.pid is None


async def test_a_control_daemon_is_ready_when_it_listens_for_packets(tmp_path: Path) -> None:
    path = tmp_path / "control"
    async with kept(tmp_path, "exec sleep 60", readiness=Readiness.MPS, socket=path) as one:
        assert await one.keeper.ready() == f"does not listen on {path} yet"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            listener.listen()
            assert await one.keeper.ready() is None


def test_a_log_that_grows_too_large_is_put_aside_and_written_on(tmp_path: Path) -> None:
    log = tmp_path / "it.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 100)
        assert journal.bound(log, max_bytes=100)
        writer.write(b"new\n")
        assert not journal.bound(log, max_bytes=100)
    assert log.read_bytes() == b"new\n"
    assert (tmp_path / "it.log.1").read_bytes() == b"old\n" * 100


def test_last_words_of_a_json_log_are_its_event_and_error_and_not_its_farewell(tmp_path: Path) -> None:
    log = tmp_path / "it.log"
    assert journal.last_words(log) == ""
    log.write_text('{"event": "started"}\n{"event": "cannot connect", "error": "refused", "level": "error"}\n\n')
    assert journal.last_words(log) == "cannot connect: refused"
    with log.open("a") as writer:
        writer.write('{"event": "stopped", "exit_code": 1, "level": "info"}\n')
    assert journal.complaint(log) == "cannot connect: refused"


def test_following_a_log_gives_complete_lines_across_truncation(tmp_path: Path) -> None:
    log = tmp_path / "it.log"
    follower = journal.Follower(log)
    with log.open("ab", buffering=0) as writer:
        writer.write(b"one\ntwo\nthr")
        assert follower.lines() == ["one", "two"]
        writer.write(b"ee\n")
        assert follower.lines() == ["three"]
        journal.bound(log, max_bytes=1)
        writer.write(b"four\n")
        assert follower.lines() == ["four"]
