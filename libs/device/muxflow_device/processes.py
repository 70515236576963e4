"""Processes named for good, as pages name them: a number that no later process of the same pid has."""

from __future__ import annotations

from pathlib import Path

from muxflow_device.native.library import library


def owner_of(pid: int) -> int:
    """Name a process: pid in the low 32 bits, start time (ticks since boot) in the high ones; 0 if there is none."""
    return int(library().mux_owner_of(pid))


def pid_of(owner: int) -> int:
    """Which pid the process has, or had."""
    return owner & 0xFFFFFFFF


def lives(owner: int) -> bool:
    """Whether the process still runs. A zombie does not; in doubt it does."""
    return bool(library().mux_owner_lives(owner))


def names_within(pid: int) -> frozenset[int]:
    """What a process that lives in a PID namespace of its own calls itself there; empty for one that lives in ours.

    By another pid, with the start time that its /proc tells of that: its own, or where /proc is still ours, that of our
    process of that pid. Offsets of time namespaces need not be whole ticks: the start time may be one off.
    """
    inner, owner = _innermost(pid), owner_of(pid)
    if inner is None or inner == pid or not owner:
        return frozenset()
    start = owner >> 32
    own = {((start + ticks) & 0xFFFFFFFF) << 32 | inner for ticks in (-1, 0, 1)}
    return frozenset(own | {owner_of(inner)} - {0})


def _innermost(pid: int) -> int | None:
    """Which pid it has in its own namespace; None where the kernel does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_bytes().splitlines()
    except OSError:
        return None
    pids = next((line.split()[1:] for line in lines if line.startswith(b"NSpid:")), [])
    return int(pids[-1]) if pids else None
