r"""An offline job: launches kernels as fast as the GPU takes them, and saves its state when asked.

It goes on from its last checkpoint. SIGUSR2 (declare ``checkpoint: {signal: SIGUSR2}`` in the job file) makes it save
after the batch that is under way; without the signal it saves every --save-every batches.

    sed "s:\$PWD:$PWD:" examples/workloads/offline.yaml | muxflow submit -
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from cuda_driver import Driver, Gpu


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


def main() -> None:
    """Run until all batches are done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=100, help="how many to do in all")
    parser.add_argument("--kernels", type=int, default=20, help="per batch")
    parser.add_argument("--kernel-us", type=int, default=500, help="duration of each, in microseconds")
    parser.add_argument("--blocks", type=int, default=1024, help="thread blocks of each")
    parser.add_argument("--memory-mib", type=int, default=256, help="device memory to hold")
    parser.add_argument("--save-every", type=int, default=50, help="batches between checkpoints; 0: only when asked")
    options = parser.parse_args()

    progress = Progress(os.environ.get("MUXFLOW_CHECKPOINT_DIR"), os.environ.get("MUXFLOW_CHECKPOINT_MARK"))
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGUSR2, ask)
    gpu = Gpu(Driver())
    gpu.allocate(options.memory_mib << 20)
    print(json.dumps({"from_batch": progress.resumed_at, "pid": os.getpid()}), flush=True)
    began_s = time.monotonic()
    while progress.batches < options.batches:
        for _ in range(options.kernels):
            gpu.spin(options.kernel_us, blocks=options.blocks)
        gpu.synchronize()
        progress.batches += 1
        if asked or (options.save_every and progress.batches % options.save_every == 0):
            asked = False
            progress.save()
    progress.save()
    gpu.close()
    done = progress.batches - progress.resumed_at
    print(json.dumps({"batches": done, "seconds": round(time.monotonic() - began_s, 3)}), flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
