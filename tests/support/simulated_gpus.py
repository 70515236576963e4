"""Simulated GPUs for one test, and a Python process that lives on them and does as it is told."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from muxflow_simgpu import SimulatedMachine


@contextlib.contextmanager
def simulated(*kinds: str) -> Iterator[SimulatedMachine]:
    """Make such devices, in a tmpfs directory of their own."""
    with (
        tempfile.TemporaryDirectory(prefix="muxflow-test-", dir="/dev/shm") as directory,
        SimulatedMachine(Path(directory) / "gpus") as machine,
    ):
        machine.start(*kinds)
        yield machine


class Puppet:
    """A Python process that evaluates expressions, in the names that its first lines have made."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, expression: str) -> Any:
        """Evaluate there; gives what it made, by way of JSON. What it raised is an AssertionError here."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(expression) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"it has died of {expression}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]


_STAGE = """
import json as _json, sys as _sys, msgspec as _msgspec
_answers, _sys.stdout = _sys.stdout, _sys.stderr
"""
_LOOP = """
for _line in _sys.stdin:
    try:
        _answer = {"value": eval(_json.loads(_line))}
    except Exception as _error:
        _answer = {"error": f"{type(_error).__name__}: {_error}"}
    print(_msgspec.json.encode(_answer).decode(), file=_answers, flush=True)
"""


@contextlib.contextmanager
def puppet(preparation: str, env: dict[str, str]) -> Iterator[Puppet]:
    """Start one; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", _STAGE + preparation + _LOOP],
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Puppet(process)
    finally:
        process.communicate(timeout=20)
