"""Settings of the scheduler: section ``[scheduler]``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.settings import Settings
from muxflow_decisions.admission import AdmissionLimits
from muxflow_decisions.device.sm_share import SmSharePolicy
from muxflow_decisions.lifecycle import RetryPolicy
from muxflow_decisions.matching import MatchingPolicy


class SchedulerSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is the scheduler's own."""

    retention_days: Annotated[float, Meta(gt=0, le=3650)] = 7.0
    """A job's record and messages are deleted this long after its end; its name is then free again."""
    retry: RetryPolicy = RetryPolicy()
    limits: AdmissionLimits = AdmissionLimits()
    sm_share: SmSharePolicy = SmSharePolicy()
    matching: MatchingPolicy = MatchingPolicy()

    profiling: bool = True
    """Whether jobs are measured alone before they run beside others."""
    profile_patience_s: Annotated[float, Meta(ge=0, le=86400)] = 30.0
    """How long a job waits to be measured while it could run without that."""
    prediction: bool = True
    """Whether the predictor is asked; else every speed is assumed."""
    speeds_refresh_s: Annotated[float, Meta(gt=0, le=86400)] = 60.0
    """A predicted speed that is older is asked for again."""
    interval_s: Annotated[float, Meta(ge=0, le=86400)] = 60.0
    """How often everything is matched anew, running jobs included, which then may move. 0: never."""
    settle_s: Annotated[float, Meta(ge=0, le=86400)] = 30.0
    """A job is not moved before it has run for so long."""
    reserved_s: Annotated[float, Meta(gt=0, le=86400)] = 120.0
    """A GPU is kept for a job that moves to it for so long at most: it has to save its state and stop first."""


class SchedulerSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the scheduler reads."""

    scheduler: SchedulerSection = SchedulerSection()
