"""What makes an online program carry the beacon; `muxflow device env` finds this by entry point."""

from __future__ import annotations

from pathlib import Path

from muxflow_device import native
from muxflow_device.rundir import RunDirectory


def environment(run_dir: Path, uuid: str) -> dict[str, str]:
    """Give the variables of a program on this GPU. Raises FileNotFoundError when the library has not been built."""
    return {
        "LD_PRELOAD": str(native.path("libxcuda.so")),
        "XCUDA_MODE": "beacon",
        "XCUDA_DEVICE_DIR": str(RunDirectory(run_dir).device(uuid).path),
    }
