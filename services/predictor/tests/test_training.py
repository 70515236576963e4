"""Training, by itself: made-up measurements whose truth is known."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from msgspec.structs import replace

from muxflow_decisions.speed import (
    PAIRS,
    Background,
    Effect,
    MeasuredPair,
    ModelPolicy,
    PairFacts,
    assumed,
    features,
    fits_by_memory,
    judge,
)
from muxflow_predictor import shipped
from muxflow_predictor.model import Errors, ModelError, Predictor, SpeedTrees
from muxflow_predictor.orders import TrainingOrder
from muxflow_predictor.train import fulfil
from muxflow_predictor.training import train

GIB = 2**30
OWN_ROWS_ONLY = ModelPolicy(shipped_until_rows=0)


def measured(count: int, *, noise: float = 0.02, memory: bool = False, seed: int = 1) -> list[MeasuredPair]:
    """Jobs that need more or fewer SMs beside services that are more or less active."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        demand, activity, share = chance.uniform(10, 100), chance.uniform(0, 90), chance.randint(10, 90)
        quota = chance.randint(1, 40) * GIB
        speed = min(1.0, share / demand) * (1 - activity / 100) * 0.9 + chance.gauss(0, noise)
        fits = quota + 20 * GIB <= 40 * GIB
        rows.append(
            MeasuredPair(
                offline_key=f"acme/{number % 25}",
                workload=f"w{number % 11}",
                gpu_kind="A100",
                facts=PairFacts(
                    gpu_memory_bytes=40 * GIB,
                    memory_bytes=quota,
                    offline_memory_bytes=quota,
                    online_memory_bytes=20 * GIB,
                    sm_share_pct=share,
                    offline_sm_activity_pct=demand,
                    online_activity_pct=activity,
                    online_activity_p99_pct=min(100.0, 1.5 * activity),
                ),
                normalized_throughput=min(max(speed, 0.0), 1.0) if fits or not memory else None,
                fits=fits if memory else None,
                time_ns=number,
            )
        )
    return rows


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(train(measured(200), PAIRS, seed=1, threads=1))


def test_a_model_is_far_better_than_assuming_on_pairs_that_it_has_never_seen() -> None:
    result = fulfil(TrainingOrder(rows=tuple(measured(400)), policy=OWN_ROWS_ONLY))
    assert result.held_out_rows > 40
    assert result.candidate.mae is not None
    assert result.assumed.mae is not None
    assert result.candidate.mae < 0.05 < result.assumed.mae
    assert result.measured_on == "this cluster"


def test_a_model_of_noise_does_not_take_the_place_of_a_good_one() -> None:
    good = fulfil(TrainingOrder(rows=tuple(measured(150)), policy=OWN_ROWS_ONLY))
    chance = random.Random(7)
    noise = tuple(replace(row, normalized_throughput=chance.random()) for row in measured(150))
    truth_again = fulfil(TrainingOrder(rows=tuple(measured(150)), present=good.trees, policy=OWN_ROWS_ONLY))
    assert not judge(truth_again.present, truth_again.candidate, truth_again.assumed, policy=OWN_ROWS_ONLY).promote
    bad = fulfil(TrainingOrder(rows=noise, policy=OWN_ROWS_ONLY))
    repaired = fulfil(TrainingOrder(rows=tuple(measured(150)), present=bad.trees, policy=OWN_ROWS_ONLY))
    assert judge(repaired.present, repaired.candidate, repaired.assumed, policy=OWN_ROWS_ONLY).promote


def test_the_order_of_the_rows_does_not_change_the_model() -> None:
    rows = measured(40)
    shuffled = rows.copy()
    random.Random(3).shuffle(shuffled)
    assert train(rows, PAIRS, seed=1, threads=1) == train(shuffled, PAIRS, seed=1, threads=1)


@pytest.mark.parametrize("demand", [15.0, 60.0, None])
def test_a_larger_share_is_never_slower_and_more_activity_never_faster(
    predictor: Predictor, demand: float | None
) -> None:
    for background in (Background(), Background(Effect(0.1, 4), Effect(-0.1, 2))):
        base = PairFacts(offline_sm_activity_pct=demand, online_activity_pct=30, online_activity_p99_pct=60)
        by_share = [features(replace(base, sm_share_pct=share), background) for share in range(1, 101)]
        by_activity = [features(replace(base, online_activity_pct=float(pct)), background) for pct in range(101)]
        speeds = [answer.speed for answer in predictor.predict(by_share)]
        assert all(before <= after for before, after in pairwise(speeds))
        assert speeds[0] < speeds[-1]
        speeds = [answer.speed for answer in predictor.predict(by_activity)]
        assert all(before >= after for before, after in pairwise(speeds))
        assert speeds[0] > speeds[-1]


def test_answers_are_shares_within_their_intervals_and_most_truths_are_too(predictor: Predictor) -> None:
    rows = measured(400, seed=2)
    answers = predictor.predict([features(row.facts, Background()) for row in rows])
    assert all(0 <= answer.low <= answer.speed <= answer.high for answer in answers)
    within = [
        answer.low <= (row.normalized_throughput or 0) <= answer.high for row, answer in zip(rows, answers, strict=True)
    ]
    assert 0.65 < sum(within) / len(within) < 0.95
    assert predictor.predict([]) == []


def test_whether_pairs_fit_is_learned_where_both_outcomes_were_measured() -> None:
    result = fulfil(TrainingOrder(rows=tuple(measured(400, memory=True)), policy=OWN_ROWS_ONLY))
    assert result.trees.fits is not None
    assert (result.candidate.fits_auc or 0) > 0.95
    without = fulfil(TrainingOrder(rows=tuple(measured(100)), policy=OWN_ROWS_ONLY))
    assert without.trees.fits is None
    assert without.candidate.fits_auc is None


def test_a_model_that_was_cut_off_or_is_of_other_features_is_refused() -> None:
    trees = train(measured(60), PAIRS, seed=1, threads=1)
    with pytest.raises(ModelError):
        Predictor(replace(trees, speed=trees.speed[:200]))
    with pytest.raises(ModelError):
        Predictor(replace(trees, names=("job_rows",)))
    errors = Errors(unmeasured_low=0, unmeasured_high=0, measured_low=0, measured_high=0)
    with pytest.raises(ModelError):
        Predictor(SpeedTrees(names=("x",), speed="tree", fits=None, errors=errors))


def test_without_a_measurement_there_is_nothing_to_train_from() -> None:
    with pytest.raises(ValueError, match="no measured throughput"):
        fulfil(TrainingOrder(rows=(), policy=OWN_ROWS_ONLY))


def test_what_is_shipped_is_simulated_and_a_model_of_it_is_better_than_assuming() -> None:
    rows = shipped.rows()
    assert len(rows) == shipped.count() > 150
    assert all(row.simulated for row in rows)
    assert {row.gpu_kind for row in rows} == {"T4", "A100", "H200"}
    result = fulfil(TrainingOrder(rows=()))
    assert result.measured_on == "simulated GPUs"
    assert judge(None, result.candidate, result.assumed, policy=ModelPolicy()).promote


def test_what_is_assumed_is_low_beside_what_was_measured() -> None:
    rows = [row for row in shipped.rows() if row.normalized_throughput is not None]
    low = [
        assumed(row.facts, fits_probability=fits_by_memory(row.facts)).normalized_throughput
        <= (row.normalized_throughput or 0) + 0.05
        for row in rows
    ]
    assert sum(low) / len(low) > 0.75
