"""As much of the CUDA driver API as the examples need, by ctypes: nothing to install, and no CUDA runtime.

The same calls run on a real GPU and on a simulated one.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

KERNELS = Path(__file__).with_name("kernels.ptx")

_U32, _U64, _I32, _PTR = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32, ctypes.c_void_p


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


class Gpu:
    """The first visible GPU, with a context on it, one stream, and our kernels."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        device, self._context, module, self._stream = _I32(), _PTR(), _PTR(), _PTR()
        driver.call("cuDeviceGet", ctypes.byref(device), 0)
        driver.call("cuCtxCreate_v2", ctypes.byref(self._context), _U32(0), device)
        driver.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(KERNELS.read_bytes()))
        driver.call("cuStreamCreate", ctypes.byref(self._stream), _U32(1))  # does not wait for the default stream
        self._spin = _PTR()
        driver.call("cuModuleGetFunction", ctypes.byref(self._spin), module, b"spin")

    def allocate(self, size_bytes: int) -> int:
        """Take device memory."""
        address = _U64()
        self._driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size_bytes))
        return address.value

    def spin(self, duration_us: int, *, blocks: int) -> None:
        """Launch a kernel that keeps `blocks` blocks busy for a while. Returns at once."""
        duration_ns = _U64(duration_us * 1000)
        parameters = (_PTR * 1)(ctypes.cast(ctypes.byref(duration_ns), _PTR))
        one = _U32(1)
        grid, block = (_U32(blocks), one, one), (_U32(1024), one, one)
        self._driver.call("cuLaunchKernel", self._spin, *grid, *block, _U32(0), self._stream, parameters, None)

    def synchronize(self) -> None:
        """Wait until everything that was launched has run."""
        self._driver.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Destroy the context."""
        self._driver.call("cuCtxDestroy_v2", self._context)
