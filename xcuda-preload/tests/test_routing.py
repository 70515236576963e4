"""How programs come to the hooks instead of the driver's functions, and only to them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from muxflow_simgpu import native_dir

if TYPE_CHECKING:
    from conftest import Node

_WHOSE = """
import ctypes

class Info(ctypes.Structure):
    _fields_ = [
        ("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("at", ctypes.c_void_p)
    ]

def whose(address):
    info = Info()
    assert ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(info))
    return info.file.decode().rpartition("/")[2] + ":" + (info.name or b"").decode()

def address(function):
    return ctypes.cast(function, ctypes.c_void_p).value

cuda = ctypes.CDLL("libcuda.so.1")
"""

_PROC_ADDRESS = """
def routed(name, version, flags, by="cuGetProcAddress_v2"):
    found = ctypes.c_void_p()
    arguments = [name.encode(), ctypes.byref(found), version, ctypes.c_uint64(flags)]
    if by == "cuGetProcAddress_v2":
        arguments.append(None)
    result = getattr(cuda, by)(*arguments)
    return whose(found.value) if result == 0 else result
"""


def test_a_symbol_of_the_driver_is_the_hook_and_others_are_the_drivers(node: Node) -> None:
    told = node.output_of(_WHOSE + "print(whose(address(cuda.cuLaunchKernel)), whose(address(cuda.cuInit)))")
    assert told.split() == ["libxcuda.so:cuLaunchKernel", "libcuda.so.1:cuInit"]


def test_without_a_job_symbols_are_the_drivers(node: Node, library: Path) -> None:
    status, told, errors = node.run(
        "python3", "-c", _WHOSE + "print(whose(address(cuda.cuLaunchKernel)))",
        preload=False, extra={"LD_PRELOAD": str(library)},
    )  # fmt: skip
    assert (status, told.strip(), errors) == (0, "libcuda.so.1:cuLaunchKernel", "")


@pytest.mark.parametrize("preload", [False, True])
def test_a_program_without_a_driver_finds_none(node: Node, preload: bool) -> None:
    told = node.output_of(
        """
        import ctypes
        program = ctypes.CDLL(None)
        for name in ("cuLaunchKernel", "cuMemAlloc_v2", "cuNoSuchFunction"):
            try:
                getattr(program, name)
                print("found")
            except AttributeError as error:
                print("undefined symbol" in str(error))
        """,
        preload=preload,
    )
    assert told.split() == ["True"] * 3


@pytest.mark.parametrize(
    ("version", "flags", "found"),
    [
        (12000, 0, "libxcuda.so:cuLaunchKernel"),
        (12000, 2, "libxcuda.so:cuLaunchKernel_ptsz"),
        (4000, 2, "libxcuda.so:cuLaunchKernel"),
        (3000, 0, "500"),
    ],
)
def test_what_the_driver_gives_for_a_version_and_flags_is_routed(
    node: Node, version: int, flags: int, found: str
) -> None:
    for by in ("cuGetProcAddress_v2", "cuGetProcAddress"):
        told = node.output_of(
            _WHOSE + _PROC_ADDRESS + f"print(routed('cuLaunchKernel', {version}, {flags}, by={by!r}))"
        )
        assert told.strip() == found


def test_the_function_that_gives_functions_is_routed_by_the_version_asked_for(node: Node) -> None:
    told = node.output_of(
        _WHOSE + _PROC_ADDRESS + "print(*(routed('cuGetProcAddress', version, 0) for version in (11030, 12000)))"
    )
    assert told.split() == ["libxcuda.so:cuGetProcAddress", "libxcuda.so:cuGetProcAddress_v2"]


def test_what_is_not_hooked_is_the_drivers_by_its_address_too(node: Node) -> None:
    told = node.output_of(_WHOSE + _PROC_ADDRESS + "print(routed('cuInit', 12000, 0))")
    assert told.strip() == "libcuda.so.1:cuInit"


def test_the_next_function_is_the_one_behind_the_caller(node: Node, library: Path, programs: Path) -> None:
    """The C library goes by the return address of dlsym's caller, which must not be the library's own."""
    status, told, errors = node.run(
        "python3", "-c", "import os; print(os.getppid())",
        extra={"LD_PRELOAD": f"{library}:{programs / 'libnext.so'}"},
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert int(told) == os.getpid()


_ASKS = """
#include <dlfcn.h>
#include <stdio.h>
int main(void) {
    void *library = dlopen("libm.so.6", RTLD_NOW);
    return printf("%g\\n", ((double (*)(double))dlsym(library, "cos"))(0)) == 2 ? 7 : 1;
}
"""


@pytest.mark.parametrize("sanitizer", [["thread"], ["address", "-static-libasan"]], ids=lambda words: words[0])
def test_a_program_whose_sanitizer_looks_for_functions_before_anything_works_is_unharmed(
    node: Node, tmp_path: Path, sanitizer: list[str]
) -> None:
    flags = [f"-fsanitize={sanitizer[0]}", *sanitizer[1:]]
    subprocess.run(
        ["cc", "-x", "c", "-", "-o", tmp_path / "asks", *flags], input=_ASKS, text=True, check=True, timeout=60
    )
    assert node.run(tmp_path / "asks") == (7, "1\n", "")


def test_an_error_of_dlsym_is_told_as_without_the_library(node: Node) -> None:
    program = """
        import ctypes
        libc = ctypes.CDLL(None)
        libc.dlsym.restype = libc.dlopen.restype = libc.dlerror.restype = ctypes.c_void_p
        libc.dlopen.argtypes = [ctypes.c_char_p, ctypes.c_int]
        libc.dlsym.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        libc.dlerror.restype = ctypes.c_char_p
        driver = libc.dlopen(b"libcuda.so.1", 2)
        for name in (b"cuMemcpy3DPeer_ptds", b"nothing"):
            print(libc.dlsym(driver, name), libc.dlerror().decode().rpartition(": ")[2])
    """
    assert node.output_of(program) == node.output_of(program, preload=False)


@pytest.mark.parametrize("place", ["in front", "behind"])
def test_a_tracer_that_chains_launches_and_lookups_is_gated_wherever_it_stands(
    node: Node, library: Path, programs: Path, place: str
) -> None:
    tracer = programs / "libtracer.so"
    process = node.python(
        """
        import ctypes
        driver = ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
        program = ctypes.CDLL(None)
        function, context = ctypes.c_void_p(1000), ctypes.c_void_p()
        print(program.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), program.cuCtxSetCurrent(context))
        for launch in (program.cuLaunchKernel, driver.cuLaunchKernel):
            print(launch(function, 1, 1, 1, 32, 1, 1, 0, None, None, None))
        print(ctypes.c_uint64.in_dll(program, "traced_launches").value)
        """,
        extra={"LD_PRELOAD": f"{tracer}:{library}" if place == "in front" else f"{library}:{tracer}"},
    )
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert output.split() == ["0", "0", "0", "0", "1" if place == "in front" else "0"]
    assert node.usage().launches == 2


def _ways(node: Node, programs: Path, *words: str, preload: bool = True) -> dict[str, str]:
    driver, bound = programs / "libcuda.so.1", programs / "libbound.so"
    status, output, errors = node.run(programs / "program_symbols", driver, bound, *words, preload=preload)
    assert (status, errors) == (0, "")
    return dict(line.split(": ", 1) for line in output.splitlines())


def test_every_way_to_a_call_of_the_driver_ends_at_its_hook(node: Node, programs: Path) -> None:
    """Handles, private ones, the next and the default; dlsym and dlvsym found by each other, past this library;
    libraries that were to be bound before all others. All but a driver in a namespace of its own, which has a C
    library of its own, too.
    """
    bare = _ways(node, programs, preload=False)
    ways = _ways(node, programs, "launch")
    driver, hook = "libcuda.so.1:cuLaunchKernel", "libxcuda.so:cuLaunchKernel"
    exported = {"by the loader", "default", "next", "cuGetProcAddress of the default"}
    expected = {way: hook if way in exported or found == driver else found for way, found in bare.items()}
    expected["in a namespace of its own"] = driver
    launches = [*expected.values()].count(hook)
    assert ways == {**expected, "launched": str(launches)}
    assert node.usage().launches == launches


def test_a_library_of_an_online_program_is_loaded_as_the_program_says(
    node: Node, library: Path, programs: Path
) -> None:
    node.environment = node.beacon()
    assert _ways(node, programs, preload=False)["bound before all others"] == "libcuda.so.1:cuLaunchKernel"


def _symbols(path: Path) -> tuple[str, dict[str, int]]:
    """A library, and what it exports, by offset."""
    listed = subprocess.run(["nm", "-D", "--defined-only", path], check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in listed.splitlines()]
    return str(path), {name: int(offset, 16) for offset, _, name in lines if name.startswith("cu")}


@pytest.mark.parametrize("driver", ["stub", "simulated"])
def test_every_function_by_name_version_and_flags_is_the_hook_of_what_the_driver_gives(
    node: Node, library: Path, programs: Path, simulation: None, driver: str
) -> None:
    of_driver = _symbols((programs if driver == "stub" else native_dir()) / "libcuda.so.1")
    of_library = _symbols(library)
    names = {re.sub(r"(_v\d+)?(_pt[ds][sz])?$", "", name) for name in {*of_driver[1], *of_library[1]}}
    told = {"driver": of_driver, "library": of_library, "names": sorted(names)}
    process = node.start(sys.executable, Path(__file__).with_name("programs") / "routes.py")
    output, errors = process.communicate(json.dumps(told), timeout=30)
    assert (process.returncode, errors) == (0, "")
    answer = json.loads(output)
    assert answer["wrong"] == []
    assert answer["asked"] > 80 * len(names)
    assert answer["routed"] >= 20
