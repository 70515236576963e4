"""The example workloads as test parts: an online service whose every request is known, and offline jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import pytest

WORKLOADS = Path(__file__).parents[2] / "examples/workloads"
SECOND_NS = 1_000_000_000


class Request(msgspec.Struct, frozen=True):
    """One request of an online service, as the service itself noted it. Times are CLOCK_MONOTONIC."""

    due_ns: int
    done_ns: int
    error: str | None = None

    @property
    def latency_ms(self) -> float:
        """From when it was due, so that waiting in line counts."""
        return (self.done_ns - self.due_ns) / 1e6


class OnlineService:
    """One run of ``examples/workloads/online_service.py``."""

    def __init__(
        self,
        log: Path,
        env: Mapping[str, str],
        *,
        rates_per_s: Iterable[float],
        seconds: float,
        seed: int = 1,
        kernels: int = 4,
        kernel_us: int = 500,
        blocks: int = 64,
    ) -> None:
        self._log = log
        rates = log.with_suffix(".rates")
        rates.write_text("".join(f"{rate}\n" for rate in rates_per_s))
        command = [sys.executable, str(WORKLOADS / "online_service.py"), "--log", str(log), "--rates", str(rates)]
        command += ["--seconds", str(seconds), "--seed", str(seed), "--kernels", str(kernels)]
        command += ["--kernel-us", str(kernel_us), "--blocks", str(blocks)]
        self._process = subprocess.Popen(
            command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.seconds = seconds
        self.begin_ns = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> None:
        """Wait until it serves."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        self.begin_ns = int(json.loads(line)["ready_ns"])

    def finish(self, patience_s: float = 30.0) -> list[Request]:
        """Wait until the load is over; gives every request."""
        errors = self._process.communicate(timeout=self.seconds + patience_s)[1]
        assert self._process.returncode == 0, errors
        return self.requests()

    def end(self) -> None:
        """End it now, in order."""
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=20)

    def requests(self) -> list[Request]:
        """Read what it has noted so far."""
        lines = self._log.read_bytes().splitlines(keepends=True)
        return [msgspec.json.decode(line, type=Request) for line in lines if line.endswith(b"\n")]

    def kill(self) -> None:
        """Leave nothing behind, however the test went."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


def lost(requests: Iterable[Request]) -> list[str]:
    """Errors that cost requests their answers."""
    return [request.error for request in requests if request.error is not None]


def offline_job(name: str, *, batches: int, memory: str = "2GiB", **options: int) -> str:
    """Make a job file of ``examples/workloads/offline_job.py``; JSON is YAML."""
    arguments = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return json.dumps(
        {
            "name": name,
            "command": [sys.executable, str(WORKLOADS / "offline_job.py"), "--batches", str(batches), *arguments],
            "gpu": {"memory": memory},
            "checkpoint": {"signal": "SIGUSR2", "grace_s": 5},
            "stop_grace_s": 5,
        }
    )


def until(look: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> None:
    """Wait for something that only asking again and again can see."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)
