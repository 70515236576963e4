"""How good predictions are."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mae(measured: Sequence[float], predicted: Sequence[float]) -> float:
    """Mean absolute error. ValueError without rows, or when there are more of one than of the other."""
    _check(measured, predicted)
    return sum(abs(one - other) for one, other in zip(measured, predicted, strict=True)) / len(measured)


def r2(measured: Sequence[float], predicted: Sequence[float]) -> float | None:
    """Share of the variance that is explained: 1 is exact, 0 as good as the mean. None where nothing varies."""
    _check(measured, predicted)
    mean = math.fsum(measured) / len(measured)
    total = math.fsum((one - mean) ** 2 for one in measured)
    if total <= 0.0:
        return None
    left = math.fsum((one - other) ** 2 for one, other in zip(measured, predicted, strict=True))
    return 1.0 - left / total


def spearman(measured: Sequence[float], predicted: Sequence[float]) -> float | None:
    """Rank correlation, -1 to 1; equal values share their mean rank. None where nothing varies."""
    _check(measured, predicted)
    one, other = ranks(measured), ranks(predicted)
    middle = (len(one) + 1) / 2
    covariance = math.fsum((a - middle) * (b - middle) for a, b in zip(one, other, strict=True))
    spread = math.sqrt(math.fsum((a - middle) ** 2 for a in one) * math.fsum((b - middle) ** 2 for b in other))
    return covariance / spread if spread > 0.0 else None


def auc(truths: Sequence[bool], scores: Sequence[float]) -> float | None:
    """Area under the ROC curve: the probability that a true one scores higher than a false one. None without both."""
    _check(truths, scores)
    true = sum(truths)
    false = len(truths) - true
    if not true or not false:
        return None
    total = math.fsum(rank for rank, truth in zip(ranks(scores), truths, strict=True) if truth)
    return (total - true * (true + 1) / 2) / (true * false)


def ranks(values: Sequence[float]) -> list[float]:
    """Rank from 1; equal values share their mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    begin = 0
    while begin < len(order):
        end = begin
        while end < len(order) and values[order[end]] == values[order[begin]]:
            end += 1
        for position in order[begin:end]:
            found[position] = (begin + 1 + end) / 2
        begin = end
    return found


def quantile(ordered: Sequence[float], share: float) -> float:
    """Take a quantile of sorted values, between two of them where it falls there. ValueError when there is none."""
    if not ordered:
        raise ValueError("no values")
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _check(one: Sequence[object], other: Sequence[object]) -> None:
    if len(one) != len(other) or not one:
        raise ValueError(f"{len(one)} and {len(other)} values: as many of both, and at least one")
