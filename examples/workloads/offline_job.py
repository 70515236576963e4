r"""An offline job: launches kernels as fast as the GPU takes them, and saves its state when asked.

It goes on from its last checkpoint. SIGUSR2 (declare ``checkpoint: {signal: SIGUSR2}`` in the job file) makes it save
after the batch that is under way; without the signal it saves every --save-every batches. All that it prints is JSON,
one object per line: where it begins, every --report-s how far it is, and how it ended.

small leaves most of a GPU free, medium takes all SMs of any, large takes its memory bandwidth as well. What is said
beside --size goes first.

    python3 examples/workloads/offline_job.py --size large --batches 1000
    sed "s:\$PWD:$PWD:" examples/workloads/small.yaml | muxflow submit - --wait
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cuda_driver import CudaError, Driver, Gpu

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a job asks of a GPU."""

    bound: str
    """``compute``: its kernels keep SMs busy. ``memory``: they copy memory of the device."""
    blocks: int
    memory_mib: int
    kernel_us: int = 500
    """Duration of a kernel that is bound by compute, alone on a GPU at full clock."""
    copy_mib: int = 64
    """What a kernel that is bound by memory copies."""


SIZES = {
    "small": Size(bound="compute", blocks=16, memory_mib=256),
    "medium": Size(bound="compute", blocks=1024, memory_mib=1024),
    "large": Size(bound="memory", blocks=1024, memory_mib=6144),
}


class Progress:
    """How many batches are done, on disk."""

    def __init__(self, directory: str | None, mark: str | None) -> None:
        self._file = Path(directory) / "progress.json" if directory else None
        self._mark = Path(mark) if mark else None
        self.batches = 0
        if self._file is not None and self._file.exists():
            self.batches = int(json.loads(self._file.read_text())["batches"])
        self.resumed_at = self.batches

    def save(self) -> None:
        """Write it, completely or not at all, and say so."""
        if self._file is None:
            return
        temporary = self._file.with_suffix(".new")
        with temporary.open("w") as file:
            json.dump({"batches": self.batches}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._file)
        if self._mark is not None:
            self._mark.touch()


def launcher(gpu: Gpu, size: Size) -> Callable[[], None]:
    """Take the memory; gives what launches one kernel."""
    if size.bound == "compute":
        gpu.allocate(size.memory_mib * MIB)
        return lambda: gpu.spin(size.kernel_us, blocks=size.blocks)
    half, piece = size.memory_mib * MIB // 2, size.copy_mib * MIB
    target, source = gpu.allocate(half), gpu.allocate(half)
    places = itertools.cycle(range(0, half - piece + 1, piece))  # the same place again would be in the cache

    def copy() -> None:
        at = next(places)
        gpu.copy(target + at, source + at, piece, blocks=size.blocks)

    return copy


def say(what: dict[str, Any]) -> None:
    """Print one line."""
    print(json.dumps(what), flush=True)


def run(gpu: Gpu, progress: Progress, options: argparse.Namespace) -> None:
    """Run until all batches are done."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGUSR2, ask)
    launch = launcher(gpu, options.size)
    say({"from_batch": progress.resumed_at, "pid": os.getpid()})
    began_s = time.monotonic()
    report_s = began_s + options.report_s
    while progress.batches < options.batches:
        for _ in range(options.kernels):
            launch()
        gpu.synchronize()
        progress.batches += 1
        if asked or (options.save_every and progress.batches % options.save_every == 0):
            asked = False
            progress.save()
        if options.report_s and time.monotonic() >= report_s:
            report_s = time.monotonic() + options.report_s
            say({"batch": progress.batches, "of": options.batches})
    progress.save()
    gpu.close()
    done = progress.batches - progress.resumed_at
    say({"batches": done, "seconds": round(time.monotonic() - began_s, 3)})


def parsed() -> argparse.Namespace:
    """Read the command line; `size` is then a `Size`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=100, help="how many to do in all")
    parser.add_argument("--kernels", type=int, default=20, help="per batch")
    parser.add_argument("--save-every", type=int, default=50, help="batches between checkpoints; 0: only when asked")
    parser.add_argument("--report-s", type=float, default=10.0, help="seconds between reports; 0: none")
    parser.add_argument("--size", choices=SIZES, default="medium", help="what it asks of the GPU (default: medium)")
    parser.add_argument("--bound", choices=("compute", "memory"), help="what holds its kernels up")
    parser.add_argument("--blocks", type=int, help="thread blocks of each kernel, 1024 threads a block")
    parser.add_argument("--memory-mib", type=int, help="device memory to hold, beside the context's own")
    parser.add_argument("--kernel-us", type=int, help="duration of each kernel, in microseconds, if bound by compute")
    parser.add_argument("--copy-mib", type=int, help="what each kernel copies, if bound by memory")
    options = parser.parse_args()
    said = {key: getattr(options, key) for key in ("bound", "blocks", "memory_mib", "kernel_us", "copy_mib")}
    options.size = replace(SIZES[options.size], **{key: value for key, value in said.items() if value is not None})
    if options.size.bound == "memory" and not 0 < 2 * options.size.copy_mib <= options.size.memory_mib:
        parser.error("--memory-mib must hold twice what --copy-mib says: it is copied from one half to the other")
    return options


def main() -> None:
    """Read the command line, and run."""
    options = parsed()
    progress = Progress(os.environ.get("MUXFLOW_CHECKPOINT_DIR"), os.environ.get("MUXFLOW_CHECKPOINT_MARK"))
    try:
        run(Gpu(Driver()), progress, options)
    except (CudaError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
