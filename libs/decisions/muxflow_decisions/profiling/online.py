"""An online service by time of day, and the forecast of its peak.

All its GPUs of one kind are taken together. Two things are kept: the last interval's length in minutes, and each
interval of the day, in which a day weighs `day_weight` of the one after it. From a restart on only the last
`OnlineProfile` is left: of each interval its mean, its 99th percentile and its weight. Its shape is lost, and whatever
the service did between that event and the oldest telemetry that is kept.

**Forecast.** The peak until the end of the next interval is the largest of three 99th percentiles, the last minutes',
this interval's and the next one's of earlier days, and a margin on top. A percentile and not the maximum: a single
sample of a busy meter would hold offline work down for ten minutes, and the budget answers to it within a tenth of a
second anyway. The margin is the 90th percentile of how far forecasts of the past were too low; while there are few of
them, it is `margin_unknown_pct` at the least, and `margin_max_pct` at the most.

Times are the server's: the clocks of nodes may differ by more than an interval.
"""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from muxflow.contracts import OnlineInterval, OnlineProfile
from muxflow.contracts.event import Percent
from muxflow_decisions.profiling.spread import Spread, merged, resembling

_MINUTE_NS: Final = 60_000_000_000
_DAY_MINUTES: Final = 1440
_ERROR_QUANTILE: Final = 0.9
_RESTORED_WEIGHT: Final = 100.0
"""Of what an event tells of its last minutes: less than telemetry, which comes again for most of them."""


class ForecastPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the profile and its forecast. Raises ValueError when intervals do not fill a day."""

    interval_minutes: Annotated[int, Meta(ge=1, le=1440)] = 10
    day_weight: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """What a day weighs against the next one: a habit is known after two days, and forgotten within a week."""
    least_samples: Annotated[int, Meta(ge=1, le=3600)] = 30
    """Fewer readings of an interval say nothing about it: half a minute of one GPU."""
    margin_unknown_pct: Percent = 10.0
    """Margin while it is not known how good the forecasts are."""
    margin_max_pct: Percent = 30.0
    """A service that is started, or gets all its users at once, is no error for later forecasts to make up for."""
    least_errors: Annotated[int, Meta(ge=1, le=1440)] = 6
    """From this many forecasts on their errors alone make the margin: an hour."""
    errors_kept: Annotated[int, Meta(ge=1, le=1440)] = 144
    """A day of forecasts."""

    def __post_init__(self) -> None:
        if _DAY_MINUTES % self.interval_minutes:
            raise ValueError(f"interval_minutes ({self.interval_minutes}) must divide a day of {_DAY_MINUTES}")


class OnlineSample(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one GPU that the service is on."""

    gpu: str
    time_ns: int
    """When the server stored it."""
    activity_pct: float
    memory_bytes: int | None = None
    """In use, and no offline job's."""


class Slot(msgspec.Struct, frozen=True):
    """One interval of the day."""

    day: int
    """The newest day that is in it; it weighs 1."""
    spread: Spread


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a service on a GPU kind."""

    slots: dict[int, Slot] = {}
    """By number of the interval within the day."""
    minutes: tuple[tuple[int, Spread], ...] = ()
    """The last ones, oldest first, by number of the minute since the epoch."""
    seen_ns: dict[str, int] = {}
    """Newest reading of each GPU: an older one is a repetition."""
    interval: int = -1
    """Number since the epoch of the newest interval; −1 before the first reading."""
    expected_pct: float | None = None
    """Peak that was expected of it when it began, without margin."""
    errors_pct: tuple[float, ...] = ()
    """How far forecasts were too low, 0 for those that were not, oldest first."""
    counted_ns: int = 0
    """Readings up to here are in `slots` already: an earlier profiler has told them."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """The peak to expect."""

    peak_pct: float
    margin_pct: float
    """Included in it."""
    until_ns: int


def take(memory: Service, sample: OnlineSample, *, policy: ForecastPolicy) -> Service:
    """Take one reading in. One that is no newer than the last of its GPU changes nothing, nor one from before the last
    interval.
    """
    if sample.time_ns <= memory.seen_ns.get(sample.gpu, _horizon_ns(memory, policy)):
        return memory
    minute = sample.time_ns // _MINUTE_NS
    interval = minute // policy.interval_minutes
    if interval > memory.interval:
        memory = _rolled(memory, interval, policy)
    slots = memory.slots
    if sample.time_ns > memory.counted_ns:
        number, day = interval % _per_day(policy), minute // _DAY_MINUTES
        slots = {**slots, number: _grown(slots.get(number), day, sample, policy)}
    return replace(
        memory,
        slots=slots,
        minutes=_noted(memory.minutes, minute, sample, policy),
        seen_ns={**memory.seen_ns, sample.gpu: sample.time_ns},
    )


def forecast(memory: Service, *, now_ns: int, policy: ForecastPolicy) -> Forecast | None:
    """Expect a peak until the end of the next interval; None while nothing is known."""
    base_pct = _expected_pct(memory, now_ns // _MINUTE_NS, policy)
    if base_pct is None:
        return None
    margin_pct = _margin_pct(memory, policy)
    interval = now_ns // _MINUTE_NS // policy.interval_minutes
    return Forecast(
        peak_pct=min(100.0, base_pct + margin_pct),
        margin_pct=margin_pct,
        until_ns=(interval + 2) * policy.interval_minutes * _MINUTE_NS,
    )


def profile(memory: Service, *, workload: str, gpu_kind: str, now_ns: int, policy: ForecastPolicy) -> OnlineProfile:
    """Make the event."""
    recent = _recent(memory, now_ns // _MINUTE_NS, policy)
    expected = forecast(memory, now_ns=now_ns, policy=policy)
    oldest_ns = now_ns - policy.interval_minutes * _MINUTE_NS
    return OnlineProfile(
        workload=workload,
        gpu_kind=gpu_kind,
        interval_minutes=policy.interval_minutes,
        intervals=tuple(
            OnlineInterval(
                start_minute=number * policy.interval_minutes,
                activity_pct_mean=slot.spread.mean_pct,
                activity_pct_p99=slot.spread.p99_pct,
                memory_peak_bytes=slot.spread.memory_peak_bytes,
                samples=int(slot.spread.weight),
            )
            for number, slot in sorted(memory.slots.items())
        ),
        activity_pct_mean=recent.mean_pct,
        activity_pct_p99=recent.p99_pct,
        memory_peak_bytes=recent.memory_peak_bytes,
        forecast_peak_pct=expected.peak_pct if expected is not None else None,
        forecast_error_pct=_error_pct(memory.errors_pct),
        forecasts=len(memory.errors_pct),
        forecast_until_ns=expected.until_ns if expected is not None else 0,
        gpus=sum(seen_ns > oldest_ns for seen_ns in memory.seen_ns.values()),
        time_ns=now_ns,
    )


def restore(event: OnlineProfile, *, stored_ns: int, policy: ForecastPolicy) -> Service:
    """Go on from what was told last. `stored_ns` is when the server stored it."""
    minute = stored_ns // _MINUTE_NS
    minutes: tuple[tuple[int, Spread], ...] = ()
    if event.activity_pct_p99 is not None:
        recent = resembling(
            mean_pct=event.activity_pct_mean,
            p99_pct=event.activity_pct_p99,
            weight=_RESTORED_WEIGHT,
            memory_peak_bytes=event.memory_peak_bytes,
        )
        minutes = ((minute, recent),)
    known = event.intervals if event.interval_minutes == policy.interval_minutes else ()
    return Service(
        slots={each.start_minute // policy.interval_minutes: _restored(each, minute) for each in known if each.samples},
        minutes=minutes,
        interval=minute // policy.interval_minutes,
        errors_pct=(event.forecast_error_pct or 0.0,) * min(event.forecasts, policy.errors_kept),
        counted_ns=stored_ns,
    )


def is_news(told: OnlineProfile | None, new: OnlineProfile) -> bool:
    """Whether a profile says something that matters to placing: figures that have moved by a point or 2 % of memory,
    another forecast, more or fewer GPUs. A new interval is always news while the service is anywhere, so that forecasts
    are never past; one that is nowhere is told once.
    """
    if told is not None and not told.gpus and not new.gpus:
        return False
    if told is None or (told.forecast_until_ns, told.gpus) != (new.forecast_until_ns, new.gpus):
        return True
    pairs = (
        (told.forecast_peak_pct, new.forecast_peak_pct, 1.0),
        (told.activity_pct_p99, new.activity_pct_p99, 1.0),
        (told.activity_pct_mean, new.activity_pct_mean, 1.0),
        (told.memory_peak_bytes, new.memory_peak_bytes, 0.02 * (told.memory_peak_bytes or 0)),
    )
    return any(
        (before is None) != (after is None) or abs((after or 0) - (before or 0)) >= max(least, 1e-9)
        for before, after, least in pairs
    )


def validate(memory: Service, policy: ForecastPolicy) -> None:
    """Raise AssertionError if a rule is broken."""
    numbers = [number for number, _ in memory.minutes]
    if numbers != sorted(set(numbers)):
        raise AssertionError("minutes are in order, each once")
    if numbers and numbers[-1] - numbers[0] > policy.interval_minutes:
        raise AssertionError("minutes of an interval's length and no more")
    if any(not 0 <= number < _per_day(policy) for number in memory.slots):
        raise AssertionError("intervals of a day")
    if len(memory.errors_pct) > policy.errors_kept or any(error < 0 for error in memory.errors_pct):
        raise AssertionError("a day of errors, none below 0")


# --- keeping


def _per_day(policy: ForecastPolicy) -> int:
    return _DAY_MINUTES // policy.interval_minutes


def _rolled(memory: Service, interval: int, policy: ForecastPolicy) -> Service:
    """Begin a new interval: hold the forecast of the last one against what came, and make one of this."""
    last = merged(spread for number, spread in memory.minutes if number // policy.interval_minutes == memory.interval)
    errors = memory.errors_pct
    if memory.expected_pct is not None and last.weight >= policy.least_samples and last.p99_pct is not None:
        errors = (*errors, max(0.0, last.p99_pct - memory.expected_pct))[-policy.errors_kept :]
    expected_pct = _expected_pct(memory, interval * policy.interval_minutes, policy)
    rolled = replace(memory, interval=interval, expected_pct=expected_pct, errors_pct=errors)
    horizon_ns = _horizon_ns(rolled, policy)
    return replace(rolled, seen_ns={gpu: seen_ns for gpu, seen_ns in memory.seen_ns.items() if seen_ns > horizon_ns})


def _horizon_ns(memory: Service, policy: ForecastPolicy) -> int:
    """Readings up to here are too late: they may have been counted, and nobody remembers."""
    return (memory.interval - 1) * policy.interval_minutes * _MINUTE_NS


def _grown(slot: Slot | None, day: int, sample: OnlineSample, policy: ForecastPolicy) -> Slot:
    """Add a reading to an interval; whichever day comes first, the older ones weigh less."""
    slot = slot or Slot(day, Spread())
    if day > slot.day:
        slot = Slot(day, slot.spread.scaled(policy.day_weight ** (day - slot.day)))
    weight = policy.day_weight ** (slot.day - day)
    return Slot(slot.day, slot.spread.added(sample.activity_pct, weight=weight, memory_bytes=sample.memory_bytes))


def _noted(
    minutes: tuple[tuple[int, Spread], ...], minute: int, sample: OnlineSample, policy: ForecastPolicy
) -> tuple[tuple[int, Spread], ...]:
    known = dict(minutes)
    known[minute] = known.get(minute, Spread()).added(sample.activity_pct, memory_bytes=sample.memory_bytes)
    newest = max(known)
    return tuple(sorted((number, each) for number, each in known.items() if newest - number <= policy.interval_minutes))


def _restored(interval: OnlineInterval, minute: int) -> Slot:
    """Take an interval out of an event of that minute; one that was still to come that day is the day before's."""
    day = minute // _DAY_MINUTES - (interval.start_minute > minute % _DAY_MINUTES)
    spread = resembling(
        mean_pct=interval.activity_pct_mean,
        p99_pct=interval.activity_pct_p99 or 0.0,
        weight=float(interval.samples),
        memory_peak_bytes=interval.memory_peak_bytes,
    )
    return Slot(day, spread)


# --- expecting


def _recent(memory: Service, minute: int, policy: ForecastPolicy) -> Spread:
    """Put the minutes of the last interval's length together."""
    return merged(spread for number, spread in memory.minutes if minute - number <= policy.interval_minutes)


def _expected_pct(memory: Service, minute: int, policy: ForecastPolicy) -> float | None:
    number = minute // policy.interval_minutes % _per_day(policy)
    found = [_recent(memory, minute, policy).p99_pct]
    for each in (number, (number + 1) % _per_day(policy)):
        slot = memory.slots.get(each)
        if slot is not None and slot.spread.weight >= policy.least_samples:
            found.append(slot.spread.p99_pct)
    return max((p99_pct for p99_pct in found if p99_pct is not None), default=None)


def _error_pct(errors_pct: tuple[float, ...]) -> float | None:
    """The 90th percentile by nearest rank: a value that occurred. None without errors."""
    if not errors_pct:
        return None
    return sorted(errors_pct)[math.ceil(_ERROR_QUANTILE * len(errors_pct)) - 1]


def _margin_pct(memory: Service, policy: ForecastPolicy) -> float:
    error_pct = _error_pct(memory.errors_pct) or 0.0
    few = len(memory.errors_pct) < policy.least_errors
    return min(policy.margin_max_pct, max(error_pct, policy.margin_unknown_pct) if few else error_pct)
