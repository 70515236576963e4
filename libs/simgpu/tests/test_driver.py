"""The driver, one call after another: every public function in `programs/` is a program of its own on one T4."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxflow_simgpu import SimulatedMachine

PROGRAMS = Path(__file__).with_name("programs")


def _programs() -> Iterator[tuple[str, str]]:
    for file in sorted(PROGRAMS.glob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield file.stem, node.name


@pytest.mark.parametrize(("file", "name"), tuple(_programs()))
def test_program(machine: SimulatedMachine, file: str, name: str) -> None:
    machine.start("T4")
    # Without site-packages a program starts in no time; only one of them needs any.
    flags = ["-E"] if file == "bindings" else ["-S", "-E"]
    done = subprocess.run(
        [sys.executable, *flags, PROGRAMS / "run.py", file, name],
        env={**os.environ, **machine.environment()},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
