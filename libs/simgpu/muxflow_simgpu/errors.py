"""What can be wrong with a simulated machine. Messages are one line, for people."""

from __future__ import annotations


class SimulationError(Exception):
    """A simulated device cannot be made, found or changed."""


class NotBuiltError(SimulationError):
    """The native libraries of this package have not been built."""
