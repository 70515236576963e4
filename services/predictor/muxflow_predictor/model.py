"""A trained model: as it is stored, and as it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

JOB_ROWS: Final = "job_rows"
"""The feature that says whether a job was measured beside anybody."""


class ModelError(Exception):
    """A stored model cannot be used. The message is one line that says why."""


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """How wrong the model is, 10th and 90th percentile of measured less predicted."""

    unmeasured_low: float
    """About jobs that were never measured beside anybody."""
    unmeasured_high: float
    measured_low: float
    """About the others."""
    measured_high: float


class SpeedTrees(msgspec.Struct, frozen=True, kw_only=True):
    """A trained model."""

    names: tuple[str, ...]
    """Features of its vectors, in order."""
    speed: str
    """LightGBM's text."""
    fits: str | None
    """LightGBM's text of the classifier; None: not enough pairs of both classes were measured."""
    errors: Errors


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What the model says of one pair."""

    speed: float
    low: float
    high: float
    fits: float | None
    """Probability; None: it has no classifier."""


class Predictor:
    """A model that answers. Making one loads LightGBM, which takes half a second of a core."""

    def __init__(self, trees: SpeedTrees, *, threads: int = 1) -> None:
        """Raises `ModelError`."""
        try:
            import lightgbm  # noqa: PLC0415 - a service that has no model yet does without
        except ImportError as error:
            raise ModelError(f"LightGBM cannot be loaded: {error}") from None
        self._errors = trees.errors
        self._threads = threads
        try:
            self._job_rows = trees.names.index(JOB_ROWS)
            self._speed = lightgbm.Booster(model_str=trees.speed)
            self._fits = lightgbm.Booster(model_str=trees.fits) if trees.fits is not None else None
        except (ValueError, lightgbm.basic.LightGBMError) as error:
            raise ModelError(str(error)) from None
        for booster in (self._speed, self._fits):
            if booster is not None and booster.num_feature() != len(trees.names):
                raise ModelError(f"{booster.num_feature()} features where {len(trees.names)} have names")

    def predict(self, vectors: Sequence[Sequence[float]]) -> list[Prediction]:
        """Answer for all vectors at once, in their order."""
        if not vectors:
            return []
        import numpy as np  # noqa: PLC0415 - see above

        values = np.asarray(vectors, dtype=np.float64)
        speeds = np.clip(self._ask(self._speed, values), 0.0, 1.0)
        known = values[:, self._job_rows] > 0
        errors = self._errors
        lows = np.clip(speeds + np.where(known, errors.measured_low, errors.unmeasured_low), 0.0, speeds)
        highs = np.maximum(speeds + np.where(known, errors.measured_high, errors.unmeasured_high), speeds)
        fits = self._ask(self._fits, values) if self._fits is not None else None
        return [
            Prediction(
                speed=float(speeds[number]),
                low=float(lows[number]),
                high=float(highs[number]),
                fits=None if fits is None else float(fits[number]),
            )
            for number in range(len(vectors))
        ]

    def _ask(self, booster: Any, values: Any) -> Any:
        return booster.predict(values, num_threads=self._threads)
