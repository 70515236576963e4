"""Every command block of the README works, in the order in which it stands there."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
READY_S = 30.0
SHORTER = {
    "make run": 'make run RUN_ARGS="--seconds 2 --gpus 2 --out $OUT"',
    "make test": "make --dry-run test",
}
"""Commands that would take too long here, or run this test: what is run instead of them."""


def commands() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


class Terminals:
    """A place to run the README's commands; the one that goes on for ever gets a terminal of its own."""

    def __init__(self, state_dir: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._env = {**os.environ, "PATH": path, "MUXFLOW_STATE_DIR": str(state_dir), "OUT": str(state_dir.parent)}
        self._up: subprocess.Popen[bytes] | None = None

    def run(self, command: str) -> None:
        if command.startswith("muxflow up"):
            self._start(command)
            return
        done = subprocess.run(
            ["bash", "-euc", SHORTER.get(command, command)],
            cwd=ROOT,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"

    def _start(self, command: str) -> None:
        up = self._up = subprocess.Popen(
            ["bash", "-euc", f"exec {command}"], cwd=ROOT, env=self._env, stdout=subprocess.PIPE
        )
        assert up.stdout is not None
        told, deadline = b"", time.monotonic() + READY_S
        while b"ready in" not in told:
            assert select.select([up.stdout], [], [], deadline - time.monotonic())[0], f"not ready: {told!r}"
            piece = os.read(up.stdout.fileno(), 65536)
            assert piece, f"ended: {told!r}"
            told += piece

    def close(self) -> int:
        if self._up is None:
            return 0
        self._up.send_signal(signal.SIGINT)
        try:
            self._up.communicate(timeout=READY_S)
        finally:
            self._up.kill()
        return self._up.returncode


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    opened = Terminals(tmp_path / "state")
    try:
        yield opened
    finally:
        opened.close()


@pytest.mark.timeout(400)
def test_every_command_of_the_readme_works_in_its_order(terminals: Terminals) -> None:
    assert any(command.startswith("muxflow up") for command in commands())
    for command in commands():
        terminals.run(command)
    assert terminals.close() == 0


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", README))))
def test_every_link_of_the_readme_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
