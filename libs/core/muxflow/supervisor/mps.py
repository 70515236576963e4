"""NVIDIA's MPS control daemon, one for each GPU: what lets programs run on it at the same time.

The daemon starts a server when the first program connects. It ends by a command, not by a signal, so that the server
ends with it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from muxflow.contracts import Gpu, encode_token
from muxflow.supervisor.hardware import Present
from muxflow.supervisor.processes import Program, Readiness, StopCommand

CONTROL: Final = "nvidia-cuda-mps-control"
_QUIT: Final = "quit -t 2\n"
"""Programs that are still connected have two seconds."""


class MpsError(Exception):
    """There is no MPS on this machine. The message is one line with the fix."""


def name(gpu: Gpu) -> str:
    """Name of the daemon of one GPU."""
    return f"mps-{gpu.index}"


def program(gpu: Gpu, present: Present, log: Path) -> Program:
    """Say how a GPU's daemon is run, and make its directories. Raises `MpsError` and OSError."""
    found = shutil.which(CONTROL, path=present.env.get("PATH"))
    if found is None:
        raise MpsError(
            f"there is no {CONTROL} on the PATH: GPUs are shared through it; it comes with NVIDIA's driver "
            "(Debian, Ubuntu: nvidia-cuda-mps, nvidia-compute-utils)"
        )
    pipes, logs = _directory(gpu, present) / "mps", _directory(gpu, present) / "mps-log"
    for directory, mode in ((pipes, 0o711), (logs, 0o700)):
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    return Program(
        name=name(gpu),
        argv=(found, "-f"),
        env={**present.env, **client(gpu, present), "CUDA_MPS_LOG_DIRECTORY": str(logs)},
        socket=pipes / "control",
        readiness=Readiness.MPS,
        log=log,
        stop_command=StopCommand(argv=(found,), stdin=_QUIT),
    )


def client(gpu: Gpu, present: Present) -> dict[str, str]:
    """What a program needs in its environment to be served on a GPU, as a client of its daemon."""
    seen = {name: value for name, value in present.env.items() if name != "PATH"}
    return {**seen, "CUDA_VISIBLE_DEVICES": gpu.uuid, "CUDA_MPS_PIPE_DIRECTORY": str(_directory(gpu, present) / "mps")}


def _directory(gpu: Gpu, present: Present) -> Path:
    if present.run_dir is None:
        raise MpsError(f"{gpu.uuid} is only declared")
    return present.run_dir / "devices" / encode_token(gpu.uuid)
