"""A job beside a service: how much of its speed alone is left.

*Normalized throughput* is launches per second beside the service over those alone, on the same GPU kind, over windows
of some seconds. Time for which the job was throttled or frozen is part of a window: that is the loss. 1 is undisturbed.
More than 1 is possible: the rate alone contains the largest budget of a watched device (900 ‰), which is lifted where
the service carries the beacon, and a program may do other work in a window than while it was measured. It means
throughput for programs whose launches are alike.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from muxflow.contracts import CorunProfile, DeviceCondition, GpuSample, OfflineProfile
from muxflow_decisions.profiling.rates import Reading, step

_SECOND_NS: Final = 1_000_000_000
_MIB: Final = 2**20
ShortS = Annotated[float, Meta(ge=0, le=600)]
"""A duration in seconds."""


class CorunPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of measurements beside a service."""

    startup_s: ShortS = 2.0
    """Left out after the first launch, as alone."""
    window_s: Annotated[float, Meta(ge=1, le=3600)] = 10.0
    """Long enough for a batch or more, short against changes of the service's load."""
    gap_s: ShortS = 3.5
    """Telemetry comes once a second; a longer gap hides what the service did, and a window begins anew."""
    memory_s: Annotated[float, Meta(ge=1, le=86_400)] = 600.0
    """The mean weighs the present as if it had been measured for this long at most: services change."""
    memory_reserve_mib: Annotated[int, Meta(ge=0, le=2**24)] = 256
    """A device that is over its limit with less than this free has no room for both."""
    sm_share_step_pct: Annotated[int, Meta(ge=0, le=100)] = 5
    """A share that differs by more is another pair: its mean begins anew."""


class BesideSample(Reading, frozen=True, kw_only=True):
    """One message of telemetry about an attempt beside a service."""

    gpu: GpuSample


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt beside one service, with one share of the SMs; another service or share begins with a new one."""

    launched_ns: int | None = None
    begun: BesideSample | None = None
    """Where the window begins."""
    newest: BesideSample | None = None
    activity_pct_sum: float = 0.0
    activities: int = 0
    samples: int = 0
    """Steps in the window."""
    unfit: bool = False
    """Both did not fit, which is told at once, and once."""


class CorunWindow(msgspec.Struct, frozen=True, kw_only=True):
    """What one window has shown."""

    seconds: float
    """0 where the window says only that both do not fit."""
    launches_per_s: float | None
    online_activity_pct: float | None
    samples: int
    fits: bool


_UNFIT: Final = CorunWindow(seconds=0.0, launches_per_s=None, online_activity_pct=None, samples=0, fits=False)


class CorunOutcome(msgspec.Struct, frozen=True):
    """Result of one step."""

    memory: Beside
    window: CorunWindow | None = None


def advance(memory: Beside, sample: BesideSample, *, policy: CorunPolicy) -> CorunOutcome:
    """Take one sample in. One that is no newer than the last changes nothing."""
    if memory.newest is not None and sample.time_ns <= memory.newest.time_ns:
        return CorunOutcome(memory)
    if not memory.unfit and _is_unfit(sample, policy):
        return CorunOutcome(replace(_begun(memory, None), newest=sample, unfit=True), _UNFIT)
    if memory.launched_ns is None and sample.usage.launches:
        memory = replace(memory, launched_ns=sample.time_ns)
    if memory.launched_ns is None or sample.time_ns < memory.launched_ns + int(policy.startup_s * _SECOND_NS):
        return CorunOutcome(replace(memory, newest=sample))
    if memory.begun is None or _broken(memory.newest, sample, policy):
        return CorunOutcome(replace(_begun(memory, sample), newest=sample))
    return _counted(memory, memory.begun, sample, policy)


def _counted(memory: Beside, begun: BesideSample, sample: BesideSample, policy: CorunPolicy) -> CorunOutcome:
    activity_pct = sample.gpu.online_activity_pct
    memory = replace(
        memory,
        newest=sample,
        activity_pct_sum=memory.activity_pct_sum + (activity_pct or 0.0),
        activities=memory.activities + (activity_pct is not None),
        samples=memory.samples + 1,
    )
    whole = step(begun, sample)
    if whole is None or whole.seconds < policy.window_s:
        return CorunOutcome(memory)
    window = CorunWindow(
        seconds=whole.seconds,
        launches_per_s=whole.launches_per_s,
        online_activity_pct=min(100.0, memory.activity_pct_sum / memory.activities) if memory.activities else None,
        samples=memory.samples,
        fits=not memory.unfit,
    )
    return CorunOutcome(replace(_begun(memory, sample), newest=sample), window)


def merge(
    known: CorunProfile,
    window: CorunWindow,
    *,
    alone: OfflineProfile | None,
    sm_share_pct: int | None,
    policy: CorunPolicy,
) -> CorunProfile:
    """Put a window into the running mean. `known` may be one that names the pair and nothing else; `alone` is the job's
    profile on that GPU kind. `measured_s` of the result is how much the mean weighs, `memory_s` at the most.
    """
    if abs((sm_share_pct or 100) - (known.sm_share_pct or 100)) > policy.sm_share_step_pct:
        known = replace(known, normalized_throughput=None, online_activity_pct=None, measured_s=0.0, samples=0)
    told = replace(known, fits=window.fits, sm_share_pct=sm_share_pct)
    speed = alone.launches_per_s if alone is not None and alone.confident else None
    if not speed or window.launches_per_s is None:
        return told
    weight_s = min(known.measured_s, policy.memory_s - window.seconds) if known.measured_s else 0.0
    weight_s = max(weight_s, 0.0)
    return replace(
        told,
        normalized_throughput=_mean(
            known.normalized_throughput, weight_s, window.launches_per_s / speed, window.seconds
        ),
        online_activity_pct=_activity_pct(known, weight_s, window),
        measured_s=weight_s + window.seconds,
        samples=known.samples + window.samples,
    )


def is_news(told: CorunProfile | None, new: CorunProfile) -> bool:
    """Whether a profile says more than what was told: whether both fit, another share, a throughput that has moved by
    2 % of that alone, activity by 2 points, or a mean that weighs twice as much.
    """
    if told is None or (told.fits, told.sm_share_pct) != (new.fits, new.sm_share_pct):
        return True
    if (told.normalized_throughput is None) != (new.normalized_throughput is None):
        return True
    return (
        abs((new.normalized_throughput or 0.0) - (told.normalized_throughput or 0.0)) >= 0.02
        or abs((new.online_activity_pct or 0.0) - (told.online_activity_pct or 0.0)) >= 2.0
        or new.measured_s >= 2 * told.measured_s > 0
    )


def validate(memory: Beside) -> None:
    """Raise AssertionError if a rule is broken."""
    if memory.begun is not None and (memory.newest is None or memory.newest.time_ns < memory.begun.time_ns):
        raise AssertionError("a window ends where it begins or later")
    if memory.activities > memory.samples:
        raise AssertionError("an activity from each sample at most")
    if memory.begun is None and memory.samples:
        raise AssertionError("samples of no window")


def _begun(memory: Beside, sample: BesideSample | None) -> Beside:
    return replace(memory, begun=sample, activity_pct_sum=0.0, activities=0, samples=0)


def _broken(before: BesideSample | None, after: BesideSample, policy: CorunPolicy) -> bool:
    if before is None or after.time_ns - before.time_ns > policy.gap_s * _SECOND_NS:
        return True
    return step(before, after) is None


def _is_unfit(sample: BesideSample, policy: CorunPolicy) -> bool:
    """Whether the device has run out of memory with both on it. That a job asked for more than its quota says nothing
    of a pair: it would anywhere.
    """
    gpu = sample.gpu
    if gpu.state is not DeviceCondition.OVERLIMIT or gpu.memory_used_bytes is None or gpu.memory_total_bytes is None:
        return False
    return gpu.memory_total_bytes - gpu.memory_used_bytes < policy.memory_reserve_mib * _MIB


def _mean(known: float | None, known_s: float, new: float, new_s: float) -> float:
    return new if known is None else (known * known_s + new * new_s) / (known_s + new_s)


def _activity_pct(known: CorunProfile, weight_s: float, window: CorunWindow) -> float | None:
    if window.online_activity_pct is None:
        return known.online_activity_pct
    return min(100.0, _mean(known.online_activity_pct, weight_s, window.online_activity_pct, window.seconds))
