"""How readings in percent are spread: a histogram in steps of 1 %, which can be added to, weighed, and merged."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

BINS: Final = 101
"""Bin n holds what is above n − 1 and at most n per cent: a quantile is never below the true one, by less than 1."""
_NONE: Final = (0.0,) * BINS


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Readings between 0 and 100 %, each with a weight, and the memory that went with them."""

    weights: tuple[float, ...] = _NONE
    weight: float = 0.0
    sum_pct: float = 0.0
    """Of the readings, weighed."""
    memory_peak_bytes: int | None = None

    def added(self, value_pct: float, *, weight: float = 1.0, memory_bytes: int | None = None) -> Spread:
        """Add one reading."""
        at = min(BINS - 1, max(0, math.ceil(value_pct)))
        return Spread(
            weights=(*self.weights[:at], self.weights[at] + weight, *self.weights[at + 1 :]),
            weight=self.weight + weight,
            sum_pct=self.sum_pct + weight * value_pct,
            memory_peak_bytes=_larger(self.memory_peak_bytes, memory_bytes),
        )

    def scaled(self, factor: float) -> Spread:
        """Have everything weigh that much of what it does. The memory peak stays: it may be needed again."""
        return Spread(
            weights=tuple(factor * each for each in self.weights),
            weight=factor * self.weight,
            sum_pct=factor * self.sum_pct,
            memory_peak_bytes=self.memory_peak_bytes,
        )

    @property
    def mean_pct(self) -> float | None:
        return min(100.0, self.sum_pct / self.weight) if self.weight else None

    def quantile_pct(self, part: float) -> float | None:
        """The least per cent that at least this part, 0 to 1, of the readings do not exceed; None without any."""
        if not self.weight:
            return None
        reached, wanted = 0.0, part * sum(self.weights)
        for at, weight in enumerate(self.weights):
            reached += weight
            if weight and reached >= wanted:
                return float(at)
        return float(max(at for at, weight in enumerate(self.weights) if weight))  # the sum was rounded up

    @property
    def p99_pct(self) -> float | None:
        return self.quantile_pct(0.99)


def merged(spreads: Iterable[Spread]) -> Spread:
    """Put several together."""
    found = tuple(spreads)
    if not found:
        return Spread()
    peak: int | None = None
    for each in found:
        peak = _larger(peak, each.memory_peak_bytes)
    return Spread(
        weights=tuple(map(sum, zip(*(each.weights for each in found), strict=True))),
        weight=sum(each.weight for each in found),
        sum_pct=sum(each.sum_pct for each in found),
        memory_peak_bytes=peak,
    )


def resembling(*, mean_pct: float | None, p99_pct: float, weight: float, memory_peak_bytes: int | None) -> Spread:
    """Make one with this 99th percentile and, as far as two values can, this mean: what is left of one once told."""
    high = 0.02 * weight  # more than the last per cent, so that the percentile lies there
    low_pct = p99_pct if mean_pct is None else (mean_pct - 0.02 * p99_pct) / 0.98
    low_pct = min(max(low_pct, 0.0), p99_pct)
    spread = Spread().added(low_pct, weight=weight - high, memory_bytes=memory_peak_bytes)
    return spread.added(p99_pct, weight=high)


def _larger(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)
