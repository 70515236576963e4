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
    kept_of_a_pair: Annotated[int, Meta(ge=1, le=1000)] = 8
    """Measurements that are kept of a pair: those that differ, newest last."""
    alike_throughput: Annotated[float, Meta(ge=0, le=1)] = 0.05
    alike_activity_pct: Annotated[float, Meta(ge=0, le=100)] = 10.0


class Absorbed(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a pair after one more measurement."""

    rows: tuple[MeasuredPair, ...]
    """Oldest first."""
    changed: bool
    """False: it was known already."""
    new: bool
    """Whether it says something that none of the others did."""


def absorb(rows: tuple[MeasuredPair, ...], row: MeasuredPair, policy: MeasuredPolicy) -> Absorbed:
    """Take in a measurement of a pair. One that is like an earlier one takes its place: it is the same, but newer."""
    if any(other.time_ns >= row.time_ns for other in rows):
        return Absorbed(rows=rows, changed=False, new=False)
    others = tuple(other for other in rows if not _alike(other, row, policy))
    return Absorbed(rows=(*others, row)[-policy.kept_of_a_pair :], changed=True, new=len(others) == len(rows))


def _alike(one: MeasuredPair, other: MeasuredPair, policy: MeasuredPolicy) -> bool:
    return (
        one.fits == other.fits
        and (one.facts.sm_share_pct or 100) == (other.facts.sm_share_pct or 100)
        and _near(one.normalized_throughput, other.normalized_throughput, policy.alike_throughput)
        and _near(one.facts.online_activity_pct, other.facts.online_activity_pct, policy.alike_activity_pct)
    )


def _near(one: float | None, other: float | None, most: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= most


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


def did_not_fit(rows: Iterable[MeasuredPair], *, now_ns: int, policy: MeasuredPolicy) -> bool:
    """Whether both ran the device out of memory when that was seen last. `rows` are all of that pair."""
    told = [row for row in rows if row.fits is not None and now_ns - row.time_ns <= policy.valid_days * _DAY_NS]
    newest = max(told, key=lambda row: row.time_ns, default=None)
    return newest is not None and newest.fits is False


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
