"""The host under the measurements: how punctual it is, and how it is made so."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from muxflow_simgpu.figures import percentile

_PRIORITY = 10


@contextmanager
def ahead_of_others() -> Iterator[bool]:
    """Have this process and those that it starts run before all others, where that is allowed; says whether it is.

    The library is to be measured, and not what else this machine has to do.
    """
    granted = False
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
        granted = True
    try:
        yield granted
    finally:
        if granted:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def oversleeps_us(count: int) -> list[float]:
    """Sleep for 1 ms, again and again; gives by how much longer it was."""
    found = []
    for _ in range(count):
        begin_ns = time.perf_counter_ns()
        time.sleep(0.001)
        found.append((time.perf_counter_ns() - begin_ns) / 1e3 - 1000)
    return found


def stolen_ms() -> float:
    """Tell how long the machine has been kept from running by the one under it, over all its processors."""
    words = Path("/proc/stat").read_text().split(maxsplit=9)
    return int(words[8]) * 1e3 / os.sysconf("SC_CLK_TCK")


def noise(oversleeps: Sequence[float], stolen_before_ms: float) -> dict[str, Any]:
    """Say how punctual it was."""
    return {
        "oversleep_us_p50": round(percentile(oversleeps, 50), 1),
        "oversleep_us_p99": round(percentile(oversleeps, 99), 1),
        "oversleep_us_max": round(max(oversleeps), 1),
        "stolen_ms": round(stolen_ms() - stolen_before_ms, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "cpus": os.cpu_count(),
    }
