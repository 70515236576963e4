"""When to train, and when a new model takes the place of the present one."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

_HOUR_NS = 3_600 * 1_000_000_000


class ModelPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of training and promotion."""

    retrain_rows: Annotated[int, Meta(ge=1, le=100_000)] = 20
    """New measurements that make a new model worth its training."""
    retrain_hours: Annotated[float, Meta(gt=0, le=8760)] = 24.0
    """With fewer of them, but any, the model is trained anew after this long."""
    shipped_until_rows: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    """With as many measurements of its own a cluster needs the shipped ones no more: they are of other GPUs."""
    held_out_rows_min: Annotated[int, Meta(ge=2, le=100_000)] = 20
    """Fewer held-out measurements judge nobody."""
    held_out_rows_max: Annotated[int, Meta(ge=2, le=100_000)] = 2000
    """The newest so many judge: jobs and services change."""
    tolerance: Annotated[float, Meta(ge=0, le=1)] = 0.02
    """By how much a rank correlation, R² or AUC may fall while the error does, before it counts as much worse."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to train from."""

    rows: int
    """Measurements, shipped ones among them."""
    new_rows: int
    """Measurements since the newest training began, whatever became of its model."""
    trained_ns: int | None
    """When that was, by the clock of `now_ns`; None: there is no model, and none was tried."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """How good a model is on held-out measurements. None: it cannot be told."""

    rows: int = 0
    mae: float | None = None
    r2: float | None = None
    spearman: float | None = None
    fits_auc: float | None = None

    def told(self) -> dict[str, float]:
        """Give what is known, as events carry it."""
        values = {"mae": self.mae, "r2": self.r2, "spearman": self.spearman, "fits_auc": self.fits_auc}
        return {name: round(value, 4) for name, value in values.items() if value is not None}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the candidate serves from now on."""

    promote: bool
    reason: str


def why_train(progress: Progress, *, now_ns: int, policy: ModelPolicy) -> str | None:
    """Say why a model is to be trained now; None: there is no reason to."""
    if not progress.rows:
        return None
    if progress.trained_ns is None:
        return "there is no model"
    if progress.new_rows >= policy.retrain_rows:
        return f"{progress.new_rows} new measurements"
    age_h = (now_ns - progress.trained_ns) / _HOUR_NS
    if progress.new_rows and age_h >= policy.retrain_hours:
        return f"{progress.new_rows} new measurements, and the model is {age_h:.0f} hours old"
    return None


def judge(present: Evaluation | None, candidate: Evaluation, assumed: Evaluation, *, policy: ModelPolicy) -> Verdict:
    """Compare a new model with the present one, and with assuming; all on the same held-out measurements.

    Without a present model the candidate has to be better than assuming. Where the measurements are too few to tell, it
    stays as it is, whatever that is: a model that nobody can judge does not serve.
    """
    if candidate.rows < policy.held_out_rows_min or candidate.mae is None:
        return Verdict(
            promote=False,
            reason=f"{candidate.rows} held-out measurements are too few to judge by ({policy.held_out_rows_min})",
        )
    rival, name = (present, "the present one's") if present and present.mae is not None else (assumed, "assuming's")
    if rival.mae is None or rival.rows != candidate.rows:
        return Verdict(promote=False, reason="there is nothing to compare with on the same measurements")
    if candidate.mae >= rival.mae:
        return Verdict(promote=False, reason=f"MAE {candidate.mae:.3f} is not below {name} {rival.mae:.3f}")
    if rival is present and (worse := _much_worse(present, candidate, policy.tolerance)):
        return Verdict(promote=False, reason=worse)
    return Verdict(promote=True, reason=f"MAE {candidate.mae:.3f} is below {name} {rival.mae:.3f}")


def _much_worse(present: Evaluation, candidate: Evaluation, tolerance: float) -> str | None:
    for name, before, after in (
        ("R²", present.r2, candidate.r2),
        ("rank correlation", present.spearman, candidate.spearman),
        ("AUC of fitting", present.fits_auc, candidate.fits_auc),
    ):
        if before is not None and (after is None or after < before - tolerance):
            return f"{name} would fall from {before:.3f} to {'nothing' if after is None else f'{after:.3f}'}"
    return None
