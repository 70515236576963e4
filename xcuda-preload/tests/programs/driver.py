"""The CUDA driver API by ctypes, for the programs of these tests: they know nothing of the library in front of it."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

PTX = b"""
.version 7.0
.target sm_70
.address_size 64

// simgpu: duration_ns=param0 sm_pct=100
.visible .entry spin(.param .u64 duration_ns)
{
    ret;
}

// simgpu: wait_word=param0 sm_pct=10
.visible .entry wait_for(.param .u64 word)
{
    ret;
}

// simgpu: duration_ns=1000 count_word=param0 sm_pct=10
.visible .entry set(.param .u64 word)
{
    ret;
}

// simgpu: duration_ns=1000 fault=illegal_address
.visible .entry fault()
{
    ret;
}
"""

cuda = ctypes.CDLL("libcuda.so.1")


class CudaError(Exception):
    """A call failed."""


def result_of(name: str, *arguments: Any) -> int:
    """What a call gives."""
    function = getattr(cuda, name)
    function.restype = c_int
    return int(function(*arguments))


def call(name: str, *arguments: Any) -> None:
    """Makes a call that is to succeed."""
    if code := result_of(name, *arguments):
        raise CudaError(f"{name}: {code}")


def begin() -> c_void_p:
    """Initialises the driver and makes the device's primary context current."""
    call("cuInit", c_uint(0))
    device, context = c_int(), c_void_p()
    call("cuDeviceGet", byref(device), 0)
    call("cuDevicePrimaryCtxRetain", byref(context), device)
    call("cuCtxSetCurrent", context)
    return context


def functions(*names: str) -> list[c_void_p]:
    """Loads kernels."""
    module = c_void_p()
    call("cuModuleLoadData", byref(module), c_char_p(PTX))
    found = []
    for name in names:
        function = c_void_p()
        call("cuModuleGetFunction", byref(function), module, name.encode())
        found.append(function)
    return found


def stream() -> c_void_p:
    """Makes a stream that does not wait for the default one."""
    made = c_void_p()
    call("cuStreamCreate", byref(made), c_uint(1))
    return made


def launch_result(function: c_void_p, argument: int | None, where: c_void_p | None = None, grid: int = 1) -> int:
    """What a launch with one 64-bit parameter gives."""
    value = c_uint64(argument or 0)
    parameters = (c_void_p * 1)(ctypes.cast(byref(value), c_void_p))
    return result_of("cuLaunchKernel", function, grid, 1, 1, 32, 1, 1, 0, where, parameters, None)


def launch(function: c_void_p, argument: int | None, where: c_void_p | None = None, grid: int = 1) -> None:
    """Launches a kernel with one 64-bit parameter."""
    if code := launch_result(function, argument, where, grid):
        raise CudaError(f"cuLaunchKernel: {code}")


def allocate(size_bytes: int) -> int:
    """Takes device memory."""
    address = c_uint64()
    call("cuMemAlloc_v2", byref(address), c_size_t(size_bytes))
    return address.value


def memory_info() -> tuple[int, int]:
    """Free and total bytes of the device."""
    free, total = c_size_t(), c_size_t()
    call("cuMemGetInfo_v2", byref(free), byref(total))
    return free.value, total.value


def say(*words: object) -> None:
    """Tells the test something, at once."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


__all__ = [
    "POINTER",
    "CudaError",
    "allocate",
    "begin",
    "byref",
    "c_char_p",
    "c_float",
    "c_int",
    "c_size_t",
    "c_uint",
    "c_uint64",
    "c_void_p",
    "call",
    "ctypes",
    "cuda",
    "functions",
    "launch",
    "launch_result",
    "memory_info",
    "os",
    "result_of",
    "say",
    "stream",
]
