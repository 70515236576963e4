"""Processes named for good, as pages name them: a number that no later process of the same pid has."""

from __future__ import annotations

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
