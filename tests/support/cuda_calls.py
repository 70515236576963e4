"""Calls of the CUDA driver API for programs of tests, by ctypes alone: a program starts in milliseconds.

`call` raises where `code` gives the CUresult. Handles are integers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import addressof, byref, c_float, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Final

cuda: Final = ctypes.CDLL("libcuda.so.1")

KERNELS: Final = Path(__file__).parents[2] / "libs" / "simgpu" / "ptx" / "kernels.ptx"

WORK: Final = b"""\
.version 6.4
.target sm_70
.address_size 64

// simgpu: duration_ns=param0 sm_pct=param1 bandwidth_pct=param2
.visible .entry work(.param .u64 duration_ns, .param .u32 sm_pct, .param .u32 bandwidth_pct)
{
    ret;
}
"""
MS: Final = 1_000_000
US: Final = 1_000

SUCCESS: Final = 0
INVALID_VALUE: Final = 1
OUT_OF_MEMORY: Final = 2
NOT_INITIALIZED: Final = 3
INVALID_HANDLE: Final = 400
NOT_FOUND: Final = 500
NOT_READY: Final = 600
ILLEGAL_ADDRESS: Final = 700
NOT_PERMITTED: Final = 800
NOT_SUPPORTED: Final = 801
MPS_CLIENT_TERMINATED: Final = 810


class CudaError(Exception):
    """A call gave another result than success."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name}: {code}")
        self.code = code


def code(name: str, *arguments: Any) -> int:
    """CUresult of a call."""
    return int(getattr(cuda, name)(*arguments))


def call(name: str, *arguments: Any) -> None:
    result = code(name, *arguments)
    if result:
        raise CudaError(name, result)


def made(name: str, *arguments: Any) -> int:
    """Handle or address that a call writes to its first argument."""
    handle = c_void_p()
    call(name, byref(handle), *(_wide(argument) for argument in arguments))
    return handle.value or 0


def _wide(argument: Any) -> Any:
    """Integers may be handles: ctypes would cut them to 32 bits."""
    return c_void_p(argument) if isinstance(argument, int) else argument


def context(device: int = 0) -> int:
    """Initialise, and make a context on a device."""
    call("cuInit", 0)
    return made("cuCtxCreate_v2", 0, device)


def module(source: bytes | None = None) -> int:
    return made("cuModuleLoadData", (source or KERNELS.read_bytes()) + b"\0")


def function(name: str, of: int | None = None) -> int:
    return made("cuModuleGetFunction", of or module(), name.encode())


def stream(*, blocking: bool = False, priority: int = 0) -> int:
    handle = c_void_p()
    call("cuStreamCreateWithPriority", byref(handle), 0 if blocking else 1, priority)
    return handle.value or 0


def event(flags: int = 0) -> int:
    return made("cuEventCreate", flags)


def launch_code(kernel: int, on: int, *values: Any, grid: int = 1, block: int = 32, shared: int = 0) -> int:
    """CUresult of a launch; values are ctypes objects."""
    parameters = (c_void_p * (len(values) + 1))(*(addressof(value) for value in values))
    return int(cuda.cuLaunchKernel(c_void_p(kernel), grid, 1, 1, block, 1, 1, shared, c_void_p(on), parameters, None))


def launch(kernel: int, on: int, *values: Any, grid: int = 1, block: int = 32) -> None:
    result = launch_code(kernel, on, *values, grid=grid, block=block)
    if result:
        raise CudaError("cuLaunchKernel", result)


class Work:
    """Launches of a kernel with the cost that each launch gives."""

    def __init__(self) -> None:
        self._function = function("work", module(WORK))

    def __call__(self, on: int, duration_ns: float, *, sm_pct: int = 100, bandwidth_pct: int = 0) -> None:
        launch(self._function, on, nanoseconds(duration_ns), c_uint32(sm_pct), c_uint32(bandwidth_pct))


def record(which: int, on: int) -> int:
    call("cuEventRecord", c_void_p(which), c_void_p(on))
    return which


def wait(which: int, on: int) -> None:
    """Let a stream wait for an event."""
    call("cuStreamWaitEvent", c_void_p(on), c_void_p(which), 0)


def synchronize(on: int) -> None:
    call("cuStreamSynchronize", c_void_p(on))


def query(on: int) -> int:
    return code("cuStreamQuery", c_void_p(on))


def elapsed_ms(start: int, end: int) -> float:
    milliseconds = c_float()
    call("cuEventElapsedTime", byref(milliseconds), c_void_p(start), c_void_p(end))
    return milliseconds.value


def allocate(size_bytes: int) -> int:
    return made("cuMemAlloc_v2", c_size_t(size_bytes))


def free(address: int) -> None:
    call("cuMemFree_v2", c_void_p(address))


def free_bytes() -> int:
    free_now, total = c_size_t(), c_size_t()
    call("cuMemGetInfo_v2", byref(free_now), byref(total))
    return free_now.value


def to_device(address: int, data: bytes) -> None:
    call("cuMemcpyHtoD_v2", c_void_p(address), data, c_size_t(len(data)))


def from_device(address: int, size_bytes: int) -> bytes:
    buffer = ctypes.create_string_buffer(size_bytes)
    call("cuMemcpyDtoH_v2", buffer, c_void_p(address), c_size_t(size_bytes))
    return buffer.raw


class Word:
    """A 32-bit word in pinned memory, which kernels and the host see alike."""

    def __init__(self) -> None:
        self.address = made("cuMemHostAlloc", c_size_t(4096), 0)
        self._word = c_uint32.from_address(self.address)

    @property
    def value(self) -> int:
        return int(self._word.value)

    @value.setter
    def value(self, value: int) -> None:
        self._word.value = value


class Gate:
    """Holds streams back, and lets all of them go at one instant of the device's time.

    What is measured between its event and later ones does not depend on how fast the host launches.
    """

    def __init__(self) -> None:
        self._word = Word()
        self._stream = stream()
        call("cuStreamWaitValue32_v2", c_void_p(self._stream), c_void_p(self._word.address), c_uint32(1), 1)
        self.event = record(event(), self._stream)

    def hold(self, *streams: int) -> None:
        for held in streams:
            wait(self.event, held)

    def open(self) -> None:
        self._word.value = 1


def after_gate(gate: Gate, *work: tuple[int, Callable[[], None]]) -> list[float]:
    """When each stream's work ended, in milliseconds after the gate opened."""
    ends: list[int] = []
    for on, put in work:
        gate.hold(on)
        put()
        ends.append(record(event(), on))
    gate.open()
    for end in ends:
        call("cuEventSynchronize", c_void_p(end))
    return [elapsed_ms(gate.event, end) for end in ends]


def near(actual_ms: float, expected_ms: float) -> bool:
    """Equal but for the single precision in which times are told."""
    return abs(actual_ms - expected_ms) <= 1e-3 + 1e-5 * expected_ms


def nanoseconds(value: float) -> c_uint64:
    return c_uint64(int(value))
