"""Training: gradient-boosted trees over measured pairs, with what is needed to judge them and to say how sure they are.

A model of the mean answers; its interval comes from what it got wrong. In five folds over the jobs, each model is asked
about jobs that it has never seen, and the 10th and 90th percentile of its errors are what is added, apart for jobs
without any measurement beside others and for those that have some.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import lightgbm
import msgspec
import numpy as np

from muxflow_decisions.speed import (
    Evaluation,
    Example,
    FeatureSpace,
    MeasuredPair,
    PairName,
    examples,
    held_out,
    in_order,
    learn,
    questions,
)
from muxflow_decisions.speed.evaluation import auc, mae, quantile, r2, spearman
from muxflow_predictor.model import Errors, SpeedTrees

TREES: Final = 300
_SPEED: Final[dict[str, Any]] = {
    "objective": "regression",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 20,
    "lambda_l2": 1.0,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "monotone_constraints_method": "advanced",
}
_FITS: Final[dict[str, Any]] = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 5,
    "lambda_l2": 1.0,
}
_FIXED: Final[dict[str, Any]] = {"verbose": -1, "deterministic": True, "force_row_wise": True, "bin_seed": 0}
_FOLDS: Final = 5
_LOW: Final = 0.1
_HIGH: Final = 0.9
_OF_EACH_CLASS: Final = 10
"""Pairs that fitted, and as many that did not, without which whether pairs fit is left to the rule."""


class Sides(msgspec.Struct, frozen=True):
    """Rows to train with, and rows to judge by."""

    training: tuple[MeasuredPair, ...]
    held_out: tuple[MeasuredPair, ...]


def split(rows: Iterable[MeasuredPair], *, newest: int) -> Sides:
    """Put each pair on its side; of what is held out, keep the `newest` rows."""
    ordered = in_order(rows)
    training = tuple(row for row in ordered if not held_out(row.name))
    kept = sorted((row for row in ordered if held_out(row.name)), key=lambda row: row.time_ns)[-newest:]
    return Sides(training, tuple(in_order(kept)))


def train(rows: Sequence[MeasuredPair], space: FeatureSpace, *, seed: int, threads: int) -> SpeedTrees:
    """Train a model of these rows, all of them. The same rows in another order give the same model.

    ValueError when no row has a throughput.
    """
    made = examples(rows, space, seed=seed)
    if not made:
        raise ValueError("no measured throughput to train from")
    return SpeedTrees(
        names=space.names,
        speed=_speed(made, space, seed, threads).model_to_string(),
        fits=_fits(rows, space, seed, threads),
        errors=_errors(made, space, seed, threads),
    )


def evaluate(predicted: Sequence[float], probability: Sequence[float], rows: Sequence[MeasuredPair]) -> Evaluation:
    """Judge answers about held-out rows, in their order. What cannot be told is None."""
    pairs = [
        (row.normalized_throughput, value)
        for row, value in zip(rows, predicted, strict=True)
        if row.normalized_throughput is not None
    ]
    known = [(row.fits, value) for row, value in zip(rows, probability, strict=True) if row.fits is not None]
    fits_auc = auc([truth for truth, _ in known], [value for _, value in known]) if known else None
    if not pairs:
        return Evaluation(fits_auc=fits_auc)
    truth, values = [one for one, _ in pairs], [value for _, value in pairs]
    return Evaluation(
        rows=len(pairs),
        mae=mae(truth, values),
        r2=r2(truth, values),
        spearman=spearman(truth, values),
        fits_auc=fits_auc,
    )


def asked(rows: Sequence[MeasuredPair], known: Sequence[MeasuredPair], space: FeatureSpace) -> list[tuple[float, ...]]:
    """Make the vectors of rows of which only the `known` ones have been measured."""
    return questions(rows, learn(known, space.expected), space)


def _speed(made: Sequence[Example], space: FeatureSpace, seed: int, threads: int) -> lightgbm.Booster:
    values = np.array([example.values for example in made])
    targets = np.array([example.target for example in made])
    settings = _SPEED | {"monotone_constraints": list(space.monotone), "seed": seed, "num_threads": threads}
    return _boosted(settings, values, targets, space.names)


def _fits(rows: Sequence[MeasuredPair], space: FeatureSpace, seed: int, threads: int) -> str | None:
    known = [row for row in in_order(rows) if row.fits is not None]
    fitted = sum(row.fits is True for row in known)
    if min(fitted, len(known) - fitted) < _OF_EACH_CLASS:
        return None
    values = np.array(asked(known, (), space))
    targets = np.array([float(row.fits is True) for row in known])
    settings = _FITS | {"seed": seed, "num_threads": threads}
    return str(_boosted(settings, values, targets, space.names).model_to_string())


def _boosted(settings: dict[str, Any], values: Any, targets: Any, names: Sequence[str]) -> lightgbm.Booster:
    data = lightgbm.Dataset(values, targets, feature_name=list(names), params={"verbose": -1})
    return lightgbm.train(settings | _FIXED, data, num_boost_round=TREES)


def _errors(made: Sequence[Example], space: FeatureSpace, seed: int, threads: int) -> Errors:
    """Learn how wrong a model is about jobs that it has not seen."""
    jobs = sorted({_job(example.name) for example in made})
    fold = {job: number % _FOLDS for number, job in enumerate(jobs)}
    unmeasured: list[float] = []
    measured: list[float] = []
    for number in range(min(_FOLDS, len(jobs))):
        inside = [example for example in made if fold[_job(example.name)] != number]
        outside = [example for example in made if fold[_job(example.name)] == number]
        if not inside:
            break
        answers = _speed(inside, space, seed, threads).predict(np.array([example.values for example in outside]))
        for example, answer in zip(outside, answers, strict=True):
            wrong = example.target - min(max(float(answer), 0.0), 1.0)
            (measured if example.job_rows else unmeasured).append(wrong)
    everything = sorted(unmeasured + measured)
    if not everything:  # one job alone says nothing of others
        return Errors(unmeasured_low=-1.0, unmeasured_high=1.0, measured_low=-1.0, measured_high=1.0)
    first, then = sorted(unmeasured) or everything, sorted(measured) or everything
    return Errors(
        unmeasured_low=quantile(first, _LOW),
        unmeasured_high=quantile(first, _HIGH),
        measured_low=quantile(then, _LOW),
        measured_high=quantile(then, _HIGH),
    )


def _job(name: PairName) -> str:
    return name.offline_key
