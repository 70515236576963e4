"""The GPUs of one machine: declared, simulated, or those that are really there.

Declared GPUs are names for the scheduler and nothing else. Simulated and real ones are found the same way, by asking
NVML, and watched: what is simulated is the driver, and a program sees it by its environment.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

import msgspec

from muxflow.contracts import Gpu

_FIND: Final = ("-m", "muxflow_device")
"""Prints the GPUs that NVML lists, as JSON."""
SIMULATION: Final = "muxflow.simulation"
"""The entry point of this group is a function from a directory and kinds of GPUs to what makes programs see them."""
BEACON: Final = "muxflow.beacon"
"""The entry point of this group is a function from the run directory and a GPU to what an online program's environment
needs for the beacon."""
_ASKED_S: Final = 30.0
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a directory of ours in it is made for us alone


class HardwareError(Exception):
    """The GPUs that were asked for cannot be had. The message is one line with the fix."""


class Declared(msgspec.Struct, frozen=True, tag="declared"):
    """GPUs that need not exist: nothing watches them, nothing holds a job to its memory."""

    gpus: tuple[Gpu, ...]


class Simulated(msgspec.Struct, frozen=True, tag="simulated"):
    """GPUs of these kinds at the driver boundary."""

    kinds: tuple[str, ...]


class Real(msgspec.Struct, frozen=True, tag="real"):
    """The GPUs that NVML finds."""


Hardware = Declared | Simulated | Real
"""Where a machine's GPUs come from."""


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs as they are while the machine runs."""

    hardware: Hardware
    gpus: tuple[Gpu, ...]
    run_dir: Path | None = None
    """Where the node's services, its jobs and MPS meet; None where nothing is watched."""
    env: dict[str, str] = {}
    """What a program needs to see the GPUs at all; nothing for real ones."""

    @property
    def watched(self) -> tuple[Gpu, ...]:
        """GPUs that a monitor protects."""
        return self.gpus if self.run_dir is not None else ()


@contextmanager
def present(hardware: Hardware, state_dir: Path) -> Iterator[Present]:
    """Have the GPUs there for the block; afterwards nothing of them is left in memory.

    Raises `HardwareError`, and OSError where the run directory cannot be made.
    """
    if isinstance(hardware, Declared):
        yield Present(hardware=hardware, gpus=hardware.gpus)
        return
    run_dir = run_directory(state_dir)
    _make(run_dir)
    try:
        env = _simulate(hardware.kinds, run_dir / "simgpu") if isinstance(hardware, Simulated) else {}
        gpus = find(env)
        if not gpus:
            raise HardwareError("NVML finds no GPU")
        yield Present(hardware=hardware, gpus=gpus, run_dir=run_dir, env=env)
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def find(env: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Ask NVML, in a process of its own: what it loads stays there. Raises `HardwareError`."""
    return msgspec.json.decode(_ask(_FIND, env), type=tuple[Gpu, ...])


def beacon(gpu: Gpu, present: Present) -> dict[str, str]:
    """Say what makes a program on a GPU tell offline ones that it launches; nothing where nothing here can."""
    environment: dict[str, str] = {}
    for point in entry_points(group=BEACON):
        with suppress(FileNotFoundError):  # it has not been built: programs are served without it
            environment |= point.load()(present.run_dir, gpu.uuid)
    return environment


def run_directory(state_dir: Path) -> Path:
    """Where a machine with this state directory has its run directory.

    In shared memory, because pages are mapped; short, because the paths of sockets in it are bounded; the same each
    time, because jobs that outlived a killed supervisor have mapped what is in it.
    """
    mark = hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:8]
    return _SHARED_MEMORY / f"muxflow-{os.getuid()}-{mark}"


def _make(run_dir: Path) -> None:
    run_dir.mkdir(mode=0o711, exist_ok=True)
    found = run_dir.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise HardwareError(f"{run_dir} belongs to somebody else; have it removed, or give another --state-dir")


def _simulate(kinds: tuple[str, ...], directory: Path) -> dict[str, str]:
    """Make simulated devices anew, and give what programs need in their environment to see them."""
    simulators = entry_points(group=SIMULATION)
    if not simulators:
        raise HardwareError("nothing here simulates GPUs; install it with: pip install 'muxflow[sim]'")
    (simulator,) = simulators
    try:
        environment: dict[str, str] = simulator.load()(directory, kinds)
    except Exception as error:  # noqa: BLE001 - another room's: it says itself what is wrong
        raise HardwareError(f"--simulate: {error}") from None
    return environment


def _ask(arguments: tuple[str, ...], env: Mapping[str, str]) -> bytes:
    """Run a program of another room and give its output; its last words become the error."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,  # Ctrl-C is the supervisor's
            timeout=_ASKED_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise HardwareError(f"{' '.join(arguments)}: no answer within {_ASKED_S:g} s") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        missing = "; install it with: pip install 'muxflow[node]'" if "No module named" in words[-1] else ""
        raise HardwareError(f"{words[-1]}{missing}")
    return done.stdout
