"""The library as other compilers build it, and for another processor."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from muxflow_device.pages.layout import RawBeaconPage

if TYPE_CHECKING:
    from conftest import Node

_ROOM = Path(__file__).parents[1]
_SYSROOT = Path("/usr/aarch64-linux-gnu")
_UNITS = ("xcuda_units",)
_PARTS = ("tests/libcuda.so.1", "tests/libbound.so", "tests/libnext.so", "tests/program_symbols", "libxcuda.so")

_STRICTLY = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-pthread", "-fsyntax-only")
_INCLUDED = ("-Iinclude", "-Isrc", "-Ibuild/hooks", "-I../libs/simgpu/include")

_HOOK = "libxcuda.so:cuLaunchKernel"


def _needs(*programs: str) -> None:
    """Skips where one is missing, but not where everything must be run."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"there is no {missing[0]}")
    if missing:
        pytest.skip(f"there is no {missing[0]} here")


@pytest.fixture(scope="session")
def built_by(make: Callable[..., None]) -> Callable[..., Path]:
    def build(compiler: str, flags: str, *parts: str) -> Path:
        place = f"build/{compiler}"
        targets = [f"{place}/{part}" for part in parts]
        make("-j2", f"CC={compiler}", f"CFLAGS={flags}", f"BUILD={place}", f"OUT={place}", *targets)
        return _ROOM / place

    return build


def _start(node: Node, place: Path, *runner: str, **variables: str) -> subprocess.Popen[str]:
    """Starts a program of that build, which launches in each way that there is and tells whose function it was."""
    tests = place / "tests"
    settings = {"LD_LIBRARY_PATH": str(tests), "LD_PRELOAD": f"{place / 'libxcuda.so'}:{tests / 'libnext.so'}"}
    command = [str(tests / part) for part in ("program_symbols", "libcuda.so.1", "libbound.so")] + ["launch"]
    if not runner:
        return node.start(*command, preload=False, extra={**settings, **variables})
    told = [word for name, value in settings.items() for word in ("-E", f"{name}={value}")]
    return node.start(*runner, *told, *command, preload=False, extra=variables)


def _check(process: subprocess.Popen[str], said: str = "") -> int:
    """Sees that all is found where it should be, and returns how many launches were ours."""
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    ways = dict(line.split(": ", 1) for line in (said + output).splitlines())
    ours = [way for way, found in ways.items() if found == _HOOK]
    assert {"handle", "default", "next", "by the loader", "cuGetProcAddress", "the next dlsym of a version"} <= {*ours}
    assert ways["not hooked"] == "libcuda.so.1:cuInit"
    assert ways["error"] == "undefined symbol: cuNoSuchFunction"
    assert ways["parent"] == "1"  # by way of a library that asks for the next function
    assert int(ways["launched"]) >= len(ours)
    return len(ours)


@pytest.mark.timeout(300)
def test_clang_builds_the_same_without_a_warning(node: Node, built_by: Callable[..., Path], tmp_path: Path) -> None:
    _needs("clang")
    place = built_by("clang", "-O2", *_PARTS)
    built_by("clang", "-O0", *(f"tests/{name}" for name in _UNITS))  # they have objects of their own
    programs = [*(_ROOM / "tests").glob("**/*.c")]
    subprocess.run(["clang", *_STRICTLY, *_INCLUDED, *programs], cwd=_ROOM, timeout=120, check=True)
    environment = {**os.environ, "XCUDA_DEVICE_DIR": str(tmp_path), "XCUDA_JOB_DIR": str(tmp_path)}
    for name in _UNITS:
        subprocess.run([place / "tests" / name], env=environment, stdout=subprocess.DEVNULL, timeout=60, check=True)
    launches = _check(_start(node, place, **node.pages()))
    assert node.usage().launches == launches


@pytest.mark.timeout(300)
def test_on_aarch64_programs_come_to_the_same_hooks_and_are_held(node: Node, built_by: Callable[..., Path]) -> None:
    """The emulator lacks the calls by which the job page is reached: neither slot nor quota is to be seen."""
    _needs("aarch64-linux-gnu-gcc", "qemu-aarch64")
    place = built_by("aarch64-linux-gnu-gcc", "-O1", *_PARTS)
    emulator = ("qemu-aarch64", "-L", str(_SYSROOT))
    node.freeze()
    process = _start(node, place, *emulator, **node.pages())
    said = node.hear(process)
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 0.2)[0] == []
    node.open_gate()
    launches = _check(process, said + "\n")
    online = _start(node, place, *emulator, XCUDA_MODE="beacon", XCUDA_DEVICE_DIR=str(node.device_dir.path))
    said = "".join(iter(lambda: node.hear(online) + "\n", "launched: 16\n"))
    [page] = node.device_dir.beacons.iterdir()
    counted = RawBeaconPage.from_buffer_copy(page.read_bytes()).slot.launches
    assert counted == _check(online, f"{said}launched: 16\n") == launches - 2  # what is bound before all stays so
