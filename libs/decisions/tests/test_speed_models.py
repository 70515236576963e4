"""When a speed model is trained, when it serves, and the figures by which it is judged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from muxflow_decisions.speed import Evaluation, ModelPolicy, Progress, judge, why_train
from muxflow_decisions.speed.evaluation import auc, mae, quantile, r2, ranks, spearman

POLICY = ModelPolicy()
HOUR_NS = 3600 * 10**9
GOOD = Evaluation(rows=50, mae=0.05, r2=0.8, spearman=0.9, fits_auc=0.95)
POOR = Evaluation(rows=50, mae=0.10, r2=0.4, spearman=0.6, fits_auc=0.95)
ASSUMED = Evaluation(rows=50, mae=0.30, r2=-2.0, spearman=0.3)
values = st.lists(st.floats(-10, 10), min_size=1, max_size=20)


def test_a_model_is_trained_at_first_after_enough_rows_and_after_a_day() -> None:
    none = Progress(rows=100, new_rows=0, trained_ns=None)
    assert why_train(none, now_ns=0, policy=POLICY) == "there is no model"
    assert why_train(replace(none, rows=0), now_ns=0, policy=POLICY) is None
    trained = replace(none, trained_ns=0)
    assert why_train(trained, now_ns=1000 * HOUR_NS, policy=POLICY) is None
    assert why_train(replace(trained, new_rows=1), now_ns=HOUR_NS, policy=POLICY) is None
    assert why_train(replace(trained, new_rows=1), now_ns=25 * HOUR_NS, policy=POLICY) == (
        "1 new measurements, and the model is 25 hours old"
    )
    assert why_train(replace(trained, new_rows=20), now_ns=0, policy=POLICY) == "20 new measurements"


def test_a_better_model_serves_and_a_worse_one_does_not() -> None:
    assert judge(POOR, GOOD, ASSUMED, policy=POLICY).promote
    refused = judge(GOOD, POOR, ASSUMED, policy=POLICY)
    assert not refused.promote
    assert refused.reason == "MAE 0.100 is not below the present one's 0.050"
    assert not judge(GOOD, GOOD, ASSUMED, policy=POLICY).promote


def test_the_first_model_has_to_be_better_than_assuming() -> None:
    assert judge(None, POOR, ASSUMED, policy=POLICY).promote
    assert not judge(None, POOR, replace(ASSUMED, mae=0.09), policy=POLICY).promote


def test_a_smaller_error_does_not_outweigh_a_much_worse_order_or_a_lost_classifier() -> None:
    candidate = replace(GOOD, mae=0.04)
    assert judge(GOOD, candidate, ASSUMED, policy=POLICY).promote
    for worse in (replace(candidate, spearman=0.7), replace(candidate, r2=0.1), replace(candidate, fits_auc=None)):
        assert not judge(GOOD, worse, ASSUMED, policy=POLICY).promote
    assert judge(GOOD, replace(candidate, spearman=0.89), ASSUMED, policy=POLICY).promote


def test_nobody_is_judged_by_a_few_measurements_or_by_other_ones() -> None:
    few = replace(GOOD, rows=19)
    assert "too few" in judge(None, few, replace(ASSUMED, rows=19), policy=POLICY).reason
    assert not judge(replace(POOR, rows=49), GOOD, ASSUMED, policy=POLICY).promote
    assert not judge(None, replace(GOOD, mae=None), ASSUMED, policy=POLICY).promote


@given(st.floats(0, 1), st.floats(0, 1))
def test_no_model_with_a_larger_error_is_ever_promoted(before: float, after: float) -> None:
    verdict = judge(replace(GOOD, mae=before), replace(GOOD, mae=after), ASSUMED, policy=POLICY)
    assert verdict.promote == (after < before)


def test_figures_are_told_as_events_carry_them() -> None:
    assert replace(GOOD, r2=None).told() == {"mae": 0.05, "spearman": 0.9, "fits_auc": 0.95}


def test_errors_and_explained_variance_of_known_values() -> None:
    assert mae([1, 2, 3], [1, 1, 5]) == 1
    assert r2([1, 2, 3], [1, 2, 3]) == 1
    assert r2([1, 2, 3], [2, 2, 2]) == 0
    assert r2([1, 2, 3], [1, 2, 5]) == pytest.approx(-1)
    assert r2([2, 2], [1, 3]) is None


def test_rank_correlation_of_known_values() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207826816681233)  # textbook, with a tie
    assert spearman([1, 2], [3, 3]) is None
    assert ranks([30, 10, 10, 20]) == [4, 1.5, 1.5, 3]


def test_area_under_the_curve_of_known_values() -> None:
    assert auc([False, False, True, True], [0.1, 0.4, 0.35, 0.8]) == 0.75  # the usual example
    assert auc([True, False], [0.5, 0.5]) == 0.5
    assert auc([True, True], [0.1, 0.2]) is None


def test_quantiles_lie_between_values() -> None:
    assert quantile([0, 10], 0.1) == 1
    assert quantile([5], 0.9) == 5
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


@given(values)
def test_predicting_what_was_measured_is_exact(measured: list[float]) -> None:
    assert mae(measured, measured) == 0
    assert r2(measured, measured) in (None, 1)
    assert (spearman(measured, measured) or 1) == pytest.approx(1)


def test_as_many_predictions_as_measurements_are_wanted() -> None:
    with pytest.raises(ValueError, match="as many of both"):
        mae([1], [1, 2])
    with pytest.raises(ValueError, match="as many of both"):
        spearman([], [])
