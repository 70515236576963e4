"""A machine that `muxflow up` runs, and the command line to talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

MUXFLOW = str(Path(sys.executable).with_name("muxflow"))
READY_S = 30.0
LEASE_S = 2.0
QUICK = (
    *("--set", f"lease.node_s={LEASE_S}"),
    *("--set", "lease.node_grace_s=0.5"),
    *("--set", "lease.node_margin_s=0.5"),
    *("--set", "lease.leader_s=1"),
)


class Machine:
    """One `muxflow up` and its state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.ready: dict[str, Any] = {}
        self.reports: list[dict[str, Any]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._partial = b""

    def start(self, *arguments: str) -> None:
        """Run it, and wait until it is ready."""
        self.start_only(*arguments)
        self.ready = self.report("ready")

    def start_only(self, *arguments: str) -> None:
        if self._process is not None:
            self._process.communicate()
            self._partial = b""
        command = [MUXFLOW, "up", "--json", "--state-dir", str(self.state_dir), *QUICK, *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def report(self, event: str, **fields: Any) -> dict[str, Any]:
        """Wait for the next report of a kind."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            found = self._next(deadline)
            self.reports.append(found)
            if found["event"] == event and fields.items() <= found.items():
                return found
        pytest.fail(f"no {event} within {READY_S} s: {self.reports}")

    def _next(self, deadline: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self._partial:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert piece, f"it ended or says nothing: {self.reports} {self._partial!r}"
            self._partial += piece
        line, _, self._partial = self._partial.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def pid(self, name: str) -> int:
        """Process id of a program as it was last told."""
        pids = [each["pid"] for each in self.reports if each["event"] == "started" and each["name"] == name]
        return int(pids[-1])

    def run(
        self, *arguments: str, stdin: str | None = None, timeout_s: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run one command of the command line against it."""
        return subprocess.run(
            [MUXFLOW, *arguments, "--state-dir", str(self.state_dir)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def json(self, *arguments: str, stdin: str | None = None) -> Any:
        """Run one command that must succeed, and decode what it prints."""
        done = self.run(*arguments, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def json_lines(self, *arguments: str) -> list[Any]:
        """Run one command that must succeed, and decode the lines that it prints."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def follow(self, *arguments: str) -> subprocess.Popen[str]:
        """Run one command that goes on."""
        command = [MUXFLOW, *arguments, "--state-dir", str(self.state_dir)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def processes(self) -> dict[int, str]:
        """Everything that runs and has to do with this state directory, by what it was started with."""
        mark = os.fsencode(self.state_dir)
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    command = (entry / "cmdline").read_bytes()
                    if mark in command or mark in (entry / "environ").read_bytes():
                        found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        return found

    def wait_gone(self, within_s: float) -> None:
        """Wait until no process of it is left."""
        deadline = time.monotonic() + within_s
        while left := self.processes():
            assert time.monotonic() < deadline, f"left after {within_s} s: {left}"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it in order if it still runs; whatever is left then is killed, by its pid."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=READY_S)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()
