"""How programs come to the hooks instead of the driver's functions, and only to them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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
