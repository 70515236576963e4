"""Settings of the profiler: section ``[profiler]``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.settings import Settings
from muxflow_decisions.profiling import CorunPolicy, ForecastPolicy, ProfilePolicy


class ProfilerSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is the profiler's own."""

    publish_s: Annotated[float, Meta(ge=0.1, le=600)] = 10.0
    """How often online profiles are published, if they have changed by anything that matters."""
    alone: ProfilePolicy = ProfilePolicy()
    """When a job that runs alone is measured well enough."""
    online: ForecastPolicy = ForecastPolicy()
    """Services by time of day, and their forecast."""
    corun: CorunPolicy = CorunPolicy()
    """Jobs beside services."""


class ProfilerSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the profiler reads."""

    profiler: ProfilerSection = ProfilerSection()
