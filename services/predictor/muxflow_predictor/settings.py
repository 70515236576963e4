"""Settings of the predictor: section ``[predictor]``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.settings import Settings
from muxflow_decisions.device.sm_share import SmSharePolicy
from muxflow_decisions.speed import MeasuredPolicy, ModelPolicy


class PredictorSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is the predictor's own."""

    policy: ModelPolicy = ModelPolicy()
    """When models are trained and promoted."""
    measured: MeasuredPolicy = MeasuredPolicy()
    """For what a measurement answers by itself, and which are kept."""
    sm_share: SmSharePolicy = SmSharePolicy()
    """How the scheduler decides a share; the same as ``[scheduler] sm_share``."""
    rows_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 20_000
    """Measurements that are kept; the pairs that were measured longest ago go first."""
    settle_s: Annotated[float, Meta(ge=0, le=3600)] = 15.0
    """Wait after the start before a first model is trained: a machine that starts has other things to do."""
    training_threads: Annotated[int, Meta(ge=1, le=64)] = 1
    training_timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 1800.0
    training_retry_s: Annotated[float, Meta(gt=0, le=86_400)] = 60.0
    """Wait after a training that failed; it doubles with each further one, up to a day."""


class PredictorSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the predictor reads."""

    predictor: PredictorSection = msgspec.field(default_factory=PredictorSection)
