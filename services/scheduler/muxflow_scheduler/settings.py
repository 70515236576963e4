"""Settings of the scheduler: section ``[scheduler]``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.settings import Settings
from muxflow_decisions.admission import AdmissionLimits
from muxflow_decisions.device.sm_share import SmSharePolicy
from muxflow_decisions.lifecycle import RetryPolicy


class SchedulerSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is the scheduler's own."""

    retention_days: Annotated[float, Meta(gt=0, le=3650)] = 7.0
    """A job's record and messages are deleted this long after its end; its name is then free again."""
    retry: RetryPolicy = RetryPolicy()
    limits: AdmissionLimits = AdmissionLimits()
    sm_share: SmSharePolicy = SmSharePolicy()


class SchedulerSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the scheduler reads."""

    scheduler: SchedulerSection = SchedulerSection()
