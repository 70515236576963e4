"""The speed of a pair that was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from muxflow.contracts.queries import Speed
from muxflow_decisions.speed.facts import MeasuredPair

MEASURED: Final = "measured"

_DAY_NS: Final = 86_400 * 1_000_000_000
_SPREAD: Final = 0.05
"""How far a long measurement is from the next one, one time in ten on each side."""
_SPREAD_AT_1_S: Final = 0.3
"""What is added for a measurement of one second; it falls with the root of its length."""


class MeasuredPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For how long, and for what, a measurement answers by itself."""

    valid_days: Annotated[float, Meta(gt=0, le=365)] = 7.0
    """Services and jobs change: an older one is a row for the model, and no answer."""
    sm_share_within_pct: Annotated[int, Meta(ge=0, le=100)] = 10
    """A pair that was measured with another SM share is another question."""


def newest_measured(
    rows: Iterable[MeasuredPair], *, sm_share_pct: int | None, now_ns: int, policy: MeasuredPolicy
) -> MeasuredPair | None:
    """Find the newest measurement of a pair that answers for this share. `rows` are all of that pair."""
    answering = [
        row
        for row in rows
        if row.normalized_throughput is not None
        and now_ns - row.time_ns <= policy.valid_days * _DAY_NS
        and abs((row.facts.sm_share_pct or 100) - (sm_share_pct or 100)) <= policy.sm_share_within_pct
    ]
    return max(answering, key=lambda row: row.time_ns, default=None)


def speed_measured(row: MeasuredPair, *, fits_probability: float) -> Speed:
    """Answer by a measurement; the shorter it was, the wider its interval."""
    value = row.normalized_throughput or 0.0
    spread = _SPREAD + _SPREAD_AT_1_S / math.sqrt(max(row.measured_s, 1.0))
    return Speed(
        normalized_throughput=value,
        low=max(value - spread, 0.0),
        high=value + spread,
        fits_probability=fits_probability,
        basis=MEASURED,
    )
