"""As much of the CUDA driver API as the examples need, by ctypes: nothing to install, and no CUDA runtime.

The same calls run on a real GPU and on a simulated one.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, NamedTuple

KERNELS = Path(__file__).with_name("kernels.ptx")

_U32, _U64, _I32, _PTR = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32, ctypes.c_void_p
_MULTIPROCESSOR_COUNT = 16
"""CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT."""
_THREADS = 1024
"""Of each block."""


class CudaError(Exception):
    """A driver call failed."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call}: {name} ({code})")
        self.call = call
        self.code = code
        self.name = name


class Driver:
    """The driver library, initialised."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_GLOBAL)
        self.call("cuInit", _U32(0))

    def call(self, name: str, *arguments: Any) -> None:
        """Call one function. Raises `CudaError`."""
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise CudaError(name, code, self._name_of(code))

    def _name_of(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(_I32(code), ctypes.byref(text))
        return (text.value or b"unknown error").decode()


class Kernel(NamedTuple):
    """A kernel, and how many of its blocks the GPU holds at once."""

    function: ctypes.c_void_p
    resident_blocks: int


class Gpu:
    """The first visible GPU, with a context on it, one stream, and our kernels."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        device, self._context, module, self._stream = _I32(), _PTR(), _PTR(), _PTR()
        driver.call("cuDeviceGet", ctypes.byref(device), 0)
        driver.call("cuCtxCreate_v2", ctypes.byref(self._context), _U32(0), device)
        driver.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(KERNELS.read_bytes()))
        driver.call("cuStreamCreate", ctypes.byref(self._stream), _U32(1))  # does not wait for the default stream
        sm_count = _I32()
        driver.call("cuDeviceGetAttribute", ctypes.byref(sm_count), _MULTIPROCESSOR_COUNT, device)
        self._spin = self._kernel(module, "spin", sm_count.value)
        self._copy = self._kernel(module, "copy", sm_count.value)

    def _kernel(self, module: ctypes.c_void_p, name: str, sm_count: int) -> Kernel:
        function, per_sm = _PTR(), _I32()
        self._driver.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        self._driver.call(
            "cuOccupancyMaxActiveBlocksPerMultiprocessor", ctypes.byref(per_sm), function, _THREADS, ctypes.c_size_t(0)
        )
        return Kernel(function, per_sm.value * sm_count)

    def allocate(self, size_bytes: int) -> int:
        """Take device memory; gives its address."""
        address = _U64()
        self._driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return address.value

    def spin(self, duration_us: int, *, blocks: int) -> None:
        """Launch a kernel that keeps `blocks` blocks, or the whole GPU, busy for a while. Returns at once."""
        self._launch(self._spin, blocks, _U64(duration_us * 1000))

    def copy(self, target: int, source: int, size_bytes: int, *, blocks: int) -> None:
        """Launch a kernel that copies device memory, a multiple of 16 bytes. Returns at once."""
        self._launch(self._copy, blocks, _U64(target), _U64(source), _U64(size_bytes))

    def _launch(self, kernel: Kernel, blocks: int, *arguments: ctypes.c_uint64) -> None:
        """More blocks than the GPU holds at once would run one wave after the other: no more than that are launched."""
        pointers = (_PTR * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        one = _U32(1)
        grid, block = (_U32(min(blocks, kernel.resident_blocks)), one, one), (_U32(_THREADS), one, one)
        self._driver.call("cuLaunchKernel", kernel.function, *grid, *block, _U32(0), self._stream, pointers, None)

    def synchronize(self) -> None:
        """Wait until everything that was launched has run."""
        self._driver.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Destroy the context, and give back all memory that was taken in it."""
        self._driver.call("cuCtxDestroy_v2", self._context)
