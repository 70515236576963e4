"""How busy the machine is: simulated GPUs and real processes share its cores, and starved ones look like slow GPUs."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Reading(msgspec.Struct, frozen=True):
    """Counters of the host at one moment."""

    time_s: float
    busy_s: float
    """CPU time in use, of all cores together."""
    own_s: dict[int, float]
    """The part of it of each process of the run."""
    starved_s: float | None
    """Time in which something that could run had to wait for a core; None where the kernel does not say."""


class HostFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The host over one phase."""

    cpu_pct: float
    """Use of all cores: 100 is all of them all the time. Whatever else runs there is in it."""
    own_cpu_pct: float
    """The part of it that this run has used; without processes that ended meanwhile."""
    starved_pct: float | None
    """Share of time in which something that could run had to wait for a core (pressure stall information)."""


def read(pids: Iterable[int]) -> Reading:
    """Read the counters. `pids` are the processes of the run."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
    busy_s = (user + nice + system + irq + softirq + steal) / _TICKS_PER_S
    starved_s = None
    with contextlib.suppress(OSError):
        some = Path("/proc/pressure/cpu").read_text().split("\n", 1)[0]
        starved_s = int(some.rpartition("total=")[2]) / 1e6
    return Reading(time.monotonic(), busy_s, {pid: _used_s(pid) for pid in pids}, starved_s)


def _used_s(pid: int) -> float:
    """CPU time of one process and of its children that have ended, in seconds; 0 if it is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, words[11:15])) / _TICKS_PER_S


def between(before: Reading, after: Reading) -> HostFigures:
    """Take the difference."""
    seconds = max(1e-9, after.time_s - before.time_s)
    starved = None
    if before.starved_s is not None and after.starved_s is not None:
        starved = round(min(100.0, 100 * (after.starved_s - before.starved_s) / seconds), 1)
    own_s = sum(max(0.0, used_s - before.own_s.get(pid, 0.0)) for pid, used_s in after.own_s.items())
    return HostFigures(
        cpu_pct=_share_pct(after.busy_s - before.busy_s, seconds),
        own_cpu_pct=_share_pct(own_s, seconds),
        starved_pct=starved,
    )


def _share_pct(used_s: float, seconds: float) -> float:
    return round(min(100.0, 100 * used_s / seconds / (os.cpu_count() or 1)), 1)


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What the run was made on."""

    cores: int
    kernel: str
    python: str


def describe() -> Host:
    """Say what this machine is, without its name."""
    return Host(
        cores=os.cpu_count() or 1,
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )
