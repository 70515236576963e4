"""A program on the CUDA driver API that does as it is told: what is on a GPU, a test says word by word.

Run as a script it reads one order per line and answers each with the CUresult of its last call, or an order's value:

    init                        cuInit
    context                     cuInit, and a context on the first device
    launch NS SM_PCT BW_PCT     a kernel of that duration, that share of the SMs and of memory bandwidth
    wait                        until everything has ended
    allocate BYTES
    leave                       destroys the context and exits with 0
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

PTX: Final = b"""\
.version 7.0
.target sm_70
.address_size 64

// simgpu: duration_ns=param0 sm_pct=param1 bandwidth_pct=param2
.visible .entry work(.param .u64 duration_ns, .param .u32 sm_pct, .param .u32 bandwidth_pct)
{
    ret;
}
"""
ANSWER_S: Final = 30.0


class CudaProgram:
    """One run of this file. As a context manager it is killed at the end, if it still runs."""

    def __init__(self, env: Mapping[str, str], *, tag: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__],
            env={**os.environ, **env, "MUXFLOW_SIMGPU_TAG": tag},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def order(self, *words: object) -> None:
        """Give an order and do not wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")

    def answer(self) -> int:
        """Wait for the answer to the oldest order that has none yet."""
        assert self._process.stdout is not None
        overdue = threading.Timer(ANSWER_S, self._process.kill)
        overdue.start()
        line = self._process.stdout.readline()
        overdue.cancel()
        assert line, f"the program ended, or gave no answer for {ANSWER_S} s"
        return int(line)

    def do(self, *words: object) -> int:
        """Give an order and wait for its answer."""
        self.order(*words)
        return self.answer()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()
        self._process.communicate()

    def close(self) -> int:
        """Let it exit without destroying its context; gives its exit code."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.stdin = None
        return self._process.wait(timeout=ANSWER_S)

    def leave(self) -> int:
        """Let it end by itself; gives its exit code."""
        self.order("leave")
        return self._process.wait(timeout=ANSWER_S)


def _program() -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    context = ctypes.c_void_p()
    work = ctypes.c_void_p()

    def make_context() -> int:
        module = ctypes.c_void_p()
        return int(
            cuda.cuInit(0)
            or cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0)
            or cuda.cuModuleLoadData(ctypes.byref(module), PTX)
            or cuda.cuModuleGetFunction(ctypes.byref(work), module, b"work")
        )

    def launch(duration_ns: str, sm_pct: str, bandwidth_pct: str) -> int:
        values = (
            ctypes.c_uint64(int(duration_ns)),
            ctypes.c_uint32(int(sm_pct)),
            ctypes.c_uint32(int(bandwidth_pct)),
        )
        parameters = (ctypes.c_void_p * 3)(*(ctypes.addressof(value) for value in values))
        return int(cuda.cuLaunchKernel(work, 1, 1, 1, 1, 1, 1, 0, None, parameters, None))

    def allocate(size_bytes: str) -> int:
        return int(cuda.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(int(size_bytes))))

    def wait() -> int:
        return int(cuda.cuCtxSynchronize())

    def init() -> int:
        return int(cuda.cuInit(0))

    orders: dict[str, Callable[..., int]] = {
        "init": init,
        "context": make_context,
        "launch": launch,
        "wait": wait,
        "allocate": allocate,
    }
    for line in sys.stdin:
        name, *arguments = line.split()
        if name == "leave":
            cuda.cuCtxDestroy_v2(context)
            return
        sys.stdout.write(f"{orders[name](*arguments)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _program()
