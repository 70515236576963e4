"""What this run says about the promises. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from muxflow_run.report import PhaseFigures, Verdict

P99_BOUND: Final = 1.10
SHARE_BOUND: Final = 0.6
NOISE_MAX: Final = 1.25
"""Where alone and alone again differ by more, either way, latencies tell nothing: noise would keep any promise."""


def figures(phases: Mapping[str, PhaseFigures]) -> dict[str, float | int | None]:
    """Give the figures of `make bench-protection` that a run has, under the same names; and ``…_device_…`` ratios."""
    protected, bare, again = phases["protected"], phases["unprotected"], phases["alone_again"]
    return {
        "online_p99_ratio": protected.online_p99_ratio,
        "online_p99_ratio_low": protected.online_p99_ratio_low,
        "online_p99_ratio_high": protected.online_p99_ratio_high,
        "alone_p99_ratio": again.online_p99_ratio,
        "alone_p99_ratio_low": again.online_p99_ratio_low,
        "alone_p99_ratio_high": again.online_p99_ratio_high,
        "online_p99_ratio_unprotected": bare.online_p99_ratio,
        "online_p99_ratio_unprotected_low": bare.online_p99_ratio_low,
        "online_p99_ratio_unprotected_high": bare.online_p99_ratio_high,
        "online_device_p99_ratio": protected.online_device_p99_ratio,
        "online_device_p99_ratio_unprotected": bare.online_device_p99_ratio,
        "offline_share": protected.offline_share,
        "offline_share_unprotected": bare.offline_share,
        "online_requests": protected.online_requests,
        "online_requests_lost": protected.online_requests_lost,
        "online_requests_lost_unprotected": bare.online_requests_lost,
    }


def verdicts(found: Mapping[str, float | int | None]) -> tuple[Verdict, ...]:
    """Hold the figures to what is promised. Noise is what alone against alone differs by."""
    again = found["alone_p99_ratio"] or 1.0
    bound = round(P99_BOUND * max(1.0, again), 3)
    latency, damage = (
        _at_most(
            f"online p99 beside protected jobs is within 10% of alone (alone again was {again:.2f} times alone)",
            found["online_p99_ratio"],
            bound,
        ),
        _at_least(
            "without protection online p99 suffers: it is beyond that bound",
            found["online_p99_ratio_unprotected"],
            bound,
        ),
    )
    if not 1 / NOISE_MAX <= again <= NOISE_MAX:
        latency, damage = replace(latency, holds=None), replace(damage, holds=None)
    return (
        latency,
        _at_most("no online request is lost beside protected jobs", found["online_requests_lost"], 0),
        _at_least("protected jobs get at least 60% of the idle time", found["offline_share"], SHARE_BOUND),
        damage,
    )


def _at_most(promise: str, figure: float | None, bound: float) -> Verdict:
    return Verdict(promise=promise, figure=figure, bound=bound, holds=None if figure is None else figure <= bound)


def _at_least(promise: str, figure: float | None, bound: float) -> Verdict:
    return Verdict(promise=promise, figure=figure, bound=bound, holds=None if figure is None else figure >= bound)
