"""Programs that use CUDA give the same with and without the library: results, output, exit status or signal."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import subprocess

    from conftest import GpuNode

_PROGRAMS = Path(__file__).with_name("conformance")
_DRIVER_PROGRAMS = Path(__file__).parents[2] / "libs" / "simgpu" / "tests" / "programs"

_BOUNDED = {"a_launch_beyond_the_queue_blocks_until_there_is_room", "kernels_are_launched_and_timed"}
"""What is not the same, by design: the library keeps the queue short, so launches come later than they were made."""

_IN_C = {
    "signals": (
        "pause pause-interrupted sleep poll select sigsuspend read synchronize copy handler handler-exits handler-dies"
        " handler-once sigset ignored sigwait signalfd blocked threads raised alarm"
    ),
    "ends": (
        "return exit at-once quick abort fault error launch-at-exit free-at-exit destructor"
        " exit-in-a-thread threads-launch reset early-return early-launch-at-exit"
    ),
    "processes": (
        "forked forked-exits forked-executed vforked spawned shell killed forked-launches itself again daemon"
    ),
    "threads": "many own-streams that-wait side-by-side cancelled",
}

_IN_PYTHON = {
    "handlers": "default interrupted handler handler-by-turns handler-dies loop waiting-thread dump threads",
    "runs": "threads spawned forked commands at-exit error error-in-a-thread left-running refused without-a-context",
}


def _ways(programs: dict[str, str]) -> list[tuple[str, str]]:
    return [(program, way) for program, ways in programs.items() for way in ways.split()]


def _end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=30)
    return process.returncode, output, errors


def _is_the_same(node: GpuNode, *command: str | Path) -> None:
    """Both run at the same time; without the library first, so that a failure shows what it is to be."""
    path = {"PYTHONPATH": str(_PROGRAMS.with_name("programs")), "PYTHONDONTWRITEBYTECODE": "1"}
    processes = [node.start(*command, preload=preload, extra=path) for preload in (False, True)]
    without, beside = [_end(process) for process in processes]
    assert beside == without
    assert without[0] not in {97, 98, 99}  # those of a program that does not get as far as its way


@pytest.mark.parametrize(("program", "way"), _ways(_IN_C))
def test_a_program_in_c_is_the_same(gpu_node: GpuNode, conformance: Path, program: str, way: str) -> None:
    _is_the_same(gpu_node, conformance / program, way)


@pytest.mark.parametrize(("program", "way"), _ways(_IN_PYTHON))
def test_a_program_in_python_is_the_same(gpu_node: GpuNode, program: str, way: str) -> None:
    _is_the_same(gpu_node, sys.executable, _PROGRAMS / f"{program}.py", way)


def _functions(file: str) -> list[str]:
    nodes = ast.parse((_DRIVER_PROGRAMS / f"{file}.py").read_text()).body
    return [node.name for node in nodes if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


@pytest.mark.parametrize("file", ["bindings", "captures", "entry_points", "graphs", "memory", "modules", "streams"])
def test_the_drivers_own_programs_hold_it_to_the_same(gpu_node: GpuNode, file: str) -> None:
    """libs/simgpu has a program for each thing that the driver promises; without the library they run there."""
    names = [name for name in _functions(file) if name not in _BOUNDED]
    status, output, errors = gpu_node.run(sys.executable, _PROGRAMS / "driver_programs.py", file, *names)
    assert (status, errors, output.split()) == (0, "", [word for name in names for word in (name, "0")])
