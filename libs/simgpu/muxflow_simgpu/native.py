"""Where the built libraries lie, and how a process comes to use them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from muxflow_simgpu.errors import NotBuiltError

DIR_VARIABLE: Final = "MUXFLOW_SIMGPU"
"""Names the directory of the devices to every library of the simulation."""

_NATIVE: Final = Path(__file__).parent / "native"
_CONTROL: Final = "libsimgpu_control.so"


def native_dir() -> Path:
    """Find the folder with ``libcuda.so.1``, ``libnvidia-ml.so.1`` and the MPS programs.

    Raises `NotBuiltError`.
    """
    if not (_NATIVE / _CONTROL).exists():
        raise NotBuiltError(f"{_NATIVE}: the simulated GPU's libraries are not built; run `make native`")
    return _NATIVE


def environment(directory: Path, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Make the variables that let a process see the devices of this directory, and no other driver.

    The native folder stands first in LD_LIBRARY_PATH and PATH; what `base` has there stays behind it. Raises
    `NotBuiltError`.
    """
    native = str(native_dir())
    return {
        DIR_VARIABLE: str(directory),
        "LD_LIBRARY_PATH": _first(native, base.get("LD_LIBRARY_PATH", "")),
        "PATH": _first(native, base.get("PATH", os.defpath)),
    }


def _first(folder: str, path: str) -> str:
    return os.pathsep.join([folder, *(entry for entry in path.split(os.pathsep) if entry and entry != folder)])
