"""Names for what a job page holds as numbers: CUDA's results, and the calls that xCUDA stands in front of."""

from __future__ import annotations

import functools
from typing import Final

from muxflow_device import native

_STICKY: Final = {
    214: "ECC_UNCORRECTABLE",
    220: "NVLINK_UNCORRECTABLE",
    226: "CONTAINED",
    700: "ILLEGAL_ADDRESS",
    702: "LAUNCH_TIMEOUT",
    710: "ASSERT",
    714: "HARDWARE_STACK_ERROR",
    715: "ILLEGAL_INSTRUCTION",
    716: "MISALIGNED_ADDRESS",
    717: "INVALID_ADDRESS_SPACE",
    718: "INVALID_PC",
    719: "LAUNCH_FAILED",
    721: "TENSOR_MEMORY_LEAK",
    806: "MPS_RPC_FAILURE",
    810: "MPS_CLIENT_TERMINATED",
    911: "EXTERNAL_DEVICE",
    999: "UNKNOWN",
}
"""Those after which every call in the context fails: xCUDA notes no others."""


def result_name(code: int) -> str:
    """Name a CUresult as `cuGetErrorName` does."""
    return f"CUDA_ERROR_{_STICKY[code]}" if code in _STICKY else f"CUDA error {code}"


def call_name(index: int) -> str:
    """Name a call by its place in xCUDA's table of hooks; empty for one that is not in it, or when it is not built."""
    return _calls().get(index, "")


@functools.cache
def _calls() -> dict[int, str]:
    """Read what the build has written down beside the libraries."""
    try:
        lines = native.path("calls.txt").read_text().splitlines()
    except OSError:
        return {}
    return {int(index): name for index, _, name in (line.partition(" ") for line in lines)}
