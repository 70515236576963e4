"""What a training is told, and what it gives: they cross a process boundary as JSON."""

from __future__ import annotations

import msgspec

from muxflow_decisions.speed import Evaluation, MeasuredPair, ModelPolicy
from muxflow_predictor.model import SpeedTrees


class TrainingOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What to train from."""

    rows: tuple[MeasuredPair, ...]
    """Measurements of this cluster."""
    present: SpeedTrees | None = None
    """The model that serves, to be judged by the same measurements."""
    policy: ModelPolicy = ModelPolicy()
    seed: int = 1
    threads: int = 1


class TrainingResult(msgspec.Struct, frozen=True, kw_only=True):
    """A model, and how it compares; all evaluations are on the same held-out measurements."""

    trees: SpeedTrees
    candidate: Evaluation
    present: Evaluation | None
    assumed: Evaluation
    trained_rows: int
    held_out_rows: int
    measured_on: str
