"""`make run`, for seconds instead of minutes: real processes on two simulated GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxflow_run import plots
from muxflow_run.course import PHASES, state_dirs
from muxflow_run.machine import MARK, run_directory
from muxflow_run.report import decode

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0
"""A whole run takes less than a minute; on a starved machine it takes its time."""
HAVE_BEGUN = "online services start"


class Run:
    """One ``python examples/run``, and what it leaves."""

    def __init__(self, directory: Path) -> None:
        self.out = directory / "out"
        self._temporary = directory / "temporary"
        self._temporary.mkdir()
        self._shared: list[Path] = []
        command = [sys.executable, str(ROOT / "examples/run"), "--out", str(self.out)]
        self.process = subprocess.Popen(
            [*command, "--simulate", "--gpus", "2", "--seconds", "2", "--set", "scheduler.profiling=false"],
            env={**os.environ, "TMPDIR": str(self._temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.told: list[str] = []

    def until(self, words: str) -> None:
        """Wait until it says something; what it has in shared memory by then must be gone at its end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(line)
            if words in line:
                (root,) = self._temporary.iterdir()
                self._shared = [path for state in state_dirs(root) if (path := run_directory(state)).exists()]
                assert self._shared
                return
        pytest.fail(f"it ended without {words!r}: {''.join(self.told)}")

    def finish(self) -> int:
        """Wait for its end; gives the exit code."""
        assert self.process.stdout is not None
        self.told += self.process.stdout.readlines()
        return self.process.wait(10)

    def left(self) -> list[str]:
        """What there is of it still: processes, files, shared memory."""
        mark = f"{MARK}={self._temporary}".encode()
        found = [str(path) for path in (*self._temporary.iterdir(), *self._shared) if path.exists()]
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
        return found

    def close(self) -> None:
        """Leave nothing behind, however the test went."""
        while self.process.poll() is None:  # the second one kills everything at once
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(1)
            except subprocess.TimeoutExpired:
                continue
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    one = Run(tmp_path)
    yield one
    one.close()


@pytest.mark.timeout(PATIENCE_S)
def test_a_run_goes_through_all_phases_writes_both_files_and_leaves_nothing(run: Run) -> None:
    run.until(HAVE_BEGUN)
    assert run.finish() == 0, "".join(run.told)
    assert not run.left()

    data = (run.out / "run.json").read_bytes()
    report = decode(data)
    assert tuple(report.phases) == PHASES
    assert report.simulated
    assert {phase.online_requests for phase in report.phases.values()} == {report.phases["alone"].online_requests}
    assert report.phases["alone"].online_requests > 20
    assert all(phase.online_requests_lost == 0 for phase in report.phases.values())
    assert all(phase.services[0].device_p99_ms for phase in report.phases.values())
    protected = report.phases["protected"]
    assert {job.size for job in protected.jobs} == {"small", "medium", "large"}
    assert {placed.gpu for placed in protected.placements} == {"A100 #0", "A100 #1"}
    assert all(gpu.samples for gpu in protected.gpus)
    for name in ("unprotected", "protected"):
        assert (report.phases[name].offline_share or 0) > 0.2, report.phases[name]
    assert report.phases["alone_again"].offline_share == 0

    page = (run.out / "run.html").read_text()
    assert all(title.replace("'", "&#x27;") in page or title in page for title in plots.TITLES)
    told = "".join(run.told)
    assert all(verdict.promise[:40] in told for verdict in report.verdicts)
    for secret in (str(run.out), os.uname().nodename):
        assert secret.encode() not in data
        assert secret not in page


@pytest.mark.timeout(120)
def test_ctrl_c_stops_everything_in_order(run: Run) -> None:
    run.until(HAVE_BEGUN)
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130, "".join(run.told)
    assert not run.left()
    assert not list(run.out.iterdir())


@pytest.mark.timeout(120)
def test_a_second_ctrl_c_kills_everything_at_once(run: Run) -> None:
    run.until(HAVE_BEGUN)
    run.process.send_signal(signal.SIGINT)
    run.until("stopping; Ctrl-C again")
    run.process.send_signal(signal.SIGTERM)
    assert run.finish() == 130, "".join(run.told)
    assert not run.left()
