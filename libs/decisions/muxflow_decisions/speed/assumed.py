"""The speed of a pair of which nothing was measured: a guess from the SM share and the online side's activity.

An offline job that gets the share s of the SMs, and needs the share d of them to run at full speed, is slowed to
min(1, s/d) by that. While the online side is active the budget takes time away from it: what is left is 1 − a, a being
the mean online activity. Of both, the product is *expected*. What is not known is taken at its worst (the job could use
every SM that it had when it was measured alone) or in the middle (a = 1/2). Assumed is four fifths of what is expected
without a profile: sharing memory bandwidth and caches costs as well, and a pair that turns out faster is a pleasant
surprise.
"""

from __future__ import annotations

from typing import Final

from muxflow.contracts.queries import Speed
from muxflow_decisions.speed.facts import PairFacts

ASSUMED: Final = "assumed"

_UNKNOWN_ACTIVITY_PCT: Final = 50.0
_SMALLEST_DEMAND_PCT: Final = 1.0
_CAUTION: Final = 0.8


def expected(facts: PairFacts) -> float:
    """What sharing SMs and time alone leave of a job's speed, 0 to 1.

    A larger share never gives less, more online activity never more.
    """
    share_pct = 100.0 if facts.sm_share_pct is None else float(facts.sm_share_pct)
    alone_pct = 100.0 if facts.offline_sm_share_pct is None else float(facts.offline_sm_share_pct)
    demand_pct = alone_pct if facts.offline_sm_activity_pct is None else facts.offline_sm_activity_pct
    activity_pct = _UNKNOWN_ACTIVITY_PCT if facts.online_activity_pct is None else facts.online_activity_pct
    return min(1.0, share_pct / max(demand_pct, _SMALLEST_DEMAND_PCT)) * (1.0 - activity_pct / 100.0)


def assumed(facts: PairFacts, *, fits_probability: float) -> Speed:
    """Guess low. Whatever is known of the job itself is left aside: it is not known how it behaves beside others."""
    share_pct = 100.0 if facts.sm_share_pct is None else float(facts.sm_share_pct)
    plain = PairFacts(sm_share_pct=facts.sm_share_pct, online_activity_pct=facts.online_activity_pct)
    guess = _CAUTION * expected(plain)
    return Speed(
        normalized_throughput=guess,
        low=guess / 2,
        high=max(guess, share_pct / 100.0),
        fits_probability=fits_probability,
        basis=ASSUMED,
    )


def alone(*, measured: bool, fits_probability: float) -> Speed:
    """The speed with nobody beside: 1, by the definition of normalized throughput."""
    return Speed(
        normalized_throughput=1.0,
        low=1.0,
        high=1.0,
        fits_probability=fits_probability,
        basis="measured" if measured else ASSUMED,
    )
