"""What measurements say: a job alone, a service by time of day, a job beside a service.

Everything is measured on production GPUs, from telemetry, which may come late, twice, or not at all.
"""

from __future__ import annotations

from muxflow_decisions.profiling.alone import (
    Ended,
    Measuring,
    ProfilePolicy,
    Sample,
    Surroundings,
    Verdict,
    disturbance,
)
from muxflow_decisions.profiling.corun import Beside, CorunPolicy, CorunWindow
from muxflow_decisions.profiling.online import ForecastPolicy, OnlineSample, Service
from muxflow_decisions.profiling.rates import Reading, Step, step

__all__ = [
    "Beside",
    "CorunPolicy",
    "CorunWindow",
    "Ended",
    "ForecastPolicy",
    "Measuring",
    "OnlineSample",
    "ProfilePolicy",
    "Reading",
    "Sample",
    "Service",
    "Step",
    "Surroundings",
    "Verdict",
    "disturbance",
    "step",
]
