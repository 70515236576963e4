"""Which job goes to which GPU, and why the others wait.

What is here needs no solver; `solve` is in `muxflow_decisions.matching.solve`, which loads OR-Tools and NumPy.
"""

from __future__ import annotations

from muxflow_decisions.matching.devices import Closed, closed
from muxflow_decisions.matching.model import JobKey, Need, Offer, OpenGpu, PlacedJob, WaitingJob, fits
from muxflow_decisions.matching.options import Option, options
from muxflow_decisions.matching.problem import (
    CertificateError,
    Matching,
    MatchingPolicy,
    Move,
    Problem,
    Summary,
    Weights,
)
from muxflow_decisions.matching.speeds import Measured, Speed, Speeds, Spot, measured_of, spot_of
from muxflow_decisions.matching.waiting import FleetGpu, FleetView, why_waiting

__all__ = [
    "CertificateError",
    "Closed",
    "FleetGpu",
    "FleetView",
    "JobKey",
    "Matching",
    "MatchingPolicy",
    "Measured",
    "Move",
    "Need",
    "Offer",
    "OpenGpu",
    "Option",
    "PlacedJob",
    "Problem",
    "Speed",
    "Speeds",
    "Spot",
    "Summary",
    "WaitingJob",
    "Weights",
    "closed",
    "fits",
    "measured_of",
    "options",
    "spot_of",
    "why_waiting",
]
