"""How fast an offline job is beside an online service: features, history, what is assumed, when a model serves."""

from muxflow_decisions.speed.assumed import ASSUMED, alone, assumed, expected
from muxflow_decisions.speed.examples import Example, examples, held_out, in_order, questions
from muxflow_decisions.speed.facts import MeasuredPair, PairFacts, PairName, facts_of, measured_pair
from muxflow_decisions.speed.features import FEATURES, HISTORY, PAIRS, Feature, FeatureSpace, features, history_values
from muxflow_decisions.speed.fits import fits_by_memory
from muxflow_decisions.speed.history import Background, Effect, History, learn
from muxflow_decisions.speed.measured import (
    MEASURED,
    Absorbed,
    MeasuredPolicy,
    absorb,
    did_not_fit,
    newest_measured,
    speed_measured,
)
from muxflow_decisions.speed.promote import Evaluation, ModelPolicy, Progress, Verdict, judge, why_train

__all__ = [
    "ASSUMED",
    "FEATURES",
    "HISTORY",
    "MEASURED",
    "PAIRS",
    "Absorbed",
    "Background",
    "Effect",
    "Evaluation",
    "Example",
    "Feature",
    "FeatureSpace",
    "History",
    "MeasuredPair",
    "MeasuredPolicy",
    "ModelPolicy",
    "PairFacts",
    "PairName",
    "Progress",
    "Verdict",
    "absorb",
    "alone",
    "assumed",
    "did_not_fit",
    "examples",
    "expected",
    "facts_of",
    "features",
    "fits_by_memory",
    "held_out",
    "history_values",
    "in_order",
    "judge",
    "learn",
    "measured_pair",
    "newest_measured",
    "questions",
    "speed_measured",
    "why_train",
]
