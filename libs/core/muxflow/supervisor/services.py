"""Which services one machine runs: data."""

from __future__ import annotations

import signal
from typing import Final

import msgspec

from muxflow.contracts import Role


class ServiceEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One service of the machine."""

    name: str
    module: str
    """Run with ``python -m``."""
    role: Role
    """Whose credentials it gets."""
    told: tuple[str, ...] = ()
    """Keys of its section of the settings that say where it is: ``node``; ``state_dir``, its own; ``run_dir``, where
    GPUs are watched; ``inventory``, the file of declared ones."""
    watches: bool = False
    """Runs only where GPUs can be watched: declared ones cannot."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_patience_s: float | None = 10.0
    """How long it may take to stop; null waits until somebody is in a hurry."""


SERVICES: Final = (
    ServiceEntry(name="scheduler", module="muxflow_scheduler", role=Role.SCHEDULER),
    ServiceEntry(name="profiler", module="muxflow_profiler", role=Role.PROFILER, watches=True),
    ServiceEntry(name="predictor", module="muxflow_predictor", role=Role.PREDICTOR, watches=True),
    ServiceEntry(
        name="monitor",
        module="muxflow_monitor",
        role=Role.NODE,
        told=("node", "state_dir", "run_dir"),
        watches=True,
    ),
    ServiceEntry(
        name="evictor",
        module="muxflow_evictor",
        role=Role.NODE,
        told=("node", "state_dir", "run_dir"),
        watches=True,
    ),
    ServiceEntry(
        name="executor",
        module="muxflow_executor",
        role=Role.NODE,
        told=("node", "state_dir", "run_dir", "inventory"),
        stop_signal=signal.SIGINT,  # drain: stop the jobs too
        stop_patience_s=None,  # each job has its own stop_grace_s
    ),
)
"""In the order in which they start. They stop in the opposite one, so that the executor can report its last exits, and
the jobs that it stops are watched to their end: a gate without a monitor is frozen, and they could not save anything.
"""
