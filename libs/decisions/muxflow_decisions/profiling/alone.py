"""When a job that runs alone has been measured well enough, and what its figures are.

A measurement is the set of its samples: the order in which they came and repetitions change nothing. Two neighbours in
time make a *step*; a step counts when the attempt was alone and at full speed at both its ends and the gate was never
frozen in between. What came before the program had settled, and what a gap in telemetry hides, does not count.

**Full speed** is not the whole device: a watched device caps offline work at its largest budget (900 ‰ unless its
monitor is told otherwise), also where nobody else is. Rates alone contain that cap. Throttled time does not tell full
speed: a program that keeps the queue full waits for the window most of the time (0.85 of it, measured on a simulated
A100 that it kept busy). So the device's budget and frozen time are looked at instead.

**The error** of a rate is the standard error of the mean over windows: as few windows as are enough (`windows`), each
as long as can be. Short ones would take the bursts of a program that launches once in some seconds for noise, and slow
changes for none. Its limit: a program counts as steady when it was while it was watched. Phases that last longer than
that (minutes of training between evaluations) are not seen, and one that happens to be even for `least_s` is believed.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from muxflow.contracts import DeviceCondition, GpuSample, OfflineProfile
from muxflow.contracts.event import Percent, Permille, ThreadPercentage
from muxflow_decisions.profiling.rates import Reading, Step, step

_SECOND_NS: Final = 1_000_000_000
_MIB: Final = 2**20
ShortS = Annotated[float, Meta(ge=0, le=600)]
"""A duration in seconds."""
LongS = Annotated[float, Meta(gt=0, le=3600)]
Relative = Annotated[float, Meta(gt=0, le=1)]


class ProfilePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a measurement alone is done. Raises ValueError when it could never be."""

    startup_s: ShortS = 2.0
    """Left out after the first launch: modules are loaded, caches are cold, memory is taken."""
    least_s: LongS = 5.0
    """Least time that must count: five messages of telemetry."""
    longest_s: LongS = 60.0
    """Then it is given up: a GPU that is kept for measuring is worth that much and no more."""
    launch_within_s: LongS = 120.0
    """A GPU that is kept for measuring waits this long for the first launch: data is loaded first."""
    error_max: Relative = 0.05
    """Standard error of the rate, relative to it. Placement does not need it better: services vary by more."""
    windows: Annotated[int, Meta(ge=3, le=100)] = 5
    """Windows that the error is taken over, at the least; with fewer it is a matter of luck."""
    memory_samples: Annotated[int, Meta(ge=1, le=100)] = 3
    """The memory peak must not have grown in the last so many samples."""
    memory_growth_max: Relative = 0.01
    """What does not count as growth: allocators keep on taking a little."""
    gap_s: ShortS = 3.5
    """Telemetry comes once a second; what happened in a longer gap is not known."""
    frozen_max: Relative = 0.01
    """Part of a step for which launches may have waited at a frozen gate."""
    online_max_pct: Percent = 20.0
    """More online activity than this is somebody, even if nobody is told to be there; less may be an error of the
    estimate."""
    budget_min_permille: Permille = 850
    """A smaller budget of the device is not full speed. Must be below the monitor's `budget_max_permille`."""
    sm_share_min_pct: ThreadPercentage = 90
    """A smaller share of the SMs is not full speed. Jobs on an idle device get 90."""

    def __post_init__(self) -> None:
        if self.least_s > self.longest_s:
            raise ValueError(f"least_s ({self.least_s:g}) must be at most longest_s ({self.longest_s:g})")


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt shares its GPU with."""

    online_known: bool = True
    """Whether the monitor has said who is served there, at that time."""
    workload: str | None = None
    others: int = 0
    """Other attempts there."""
    sm_share_pct: int | None = None
    """The attempt's own; None: all SMs."""


class Sample(Reading, frozen=True, kw_only=True):
    """One message of telemetry about one attempt."""

    gpu: GpuSample
    disturbance: str = ""
    """Why the attempt was not alone and at full speed, in words for people; empty when it was."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt is over."""

    interrupted: bool
    """Somebody wanted it gone: that says nothing about the job."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; fields as in `OfflineProfile`."""

    utilization_pct: float | None
    sm_activity_pct: float | None
    sm_occupancy_pct: float | None
    memory_bandwidth_pct: float | None
    memory_peak_bytes: int
    busy_permille: int
    kernel_time_us_mean: float | None
    launches_per_s: float
    launches_relative_error: float | None
    measured_s: float
    samples: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How a measurement came out. It is over then."""

    figures: Figures | None
    failure: str | None = None
    """None: the figures are good."""


class Measuring(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt's measurement. Begin with one that says only whether it is bounded."""

    bounded: bool
    """The GPU is kept for this (purpose *profile*): it ends within `longest_s` of the first launch, in any case. Else
    the job runs for its own sake, and only time that counts is limited."""
    samples: tuple[Sample, ...] = ()
    """By time, each time once, as far as is still of use."""
    first_ns: int | None = None
    launched_ns: int | None = None
    """The earliest sample in which it had launched anything."""
    refused_bytes: int = 0
    over: bool = False


class AloneOutcome(msgspec.Struct, frozen=True):
    """Result of one step."""

    memory: Measuring
    verdict: Verdict | None = None


def disturbance(gpu: GpuSample, around: Surroundings, policy: ProfilePolicy) -> str:
    """Say why an attempt is not alone and at full speed; empty when it is."""
    return next(_disturbances(gpu, around, policy), "")


def _disturbances(gpu: GpuSample, around: Surroundings, policy: ProfilePolicy) -> Iterator[str]:
    if not around.online_known:
        yield "it is not known who is served there"
    if around.workload is not None:
        yield f"{around.workload} is served there"
    if around.others:
        yield "another job is there"
    if around.sm_share_pct is not None and around.sm_share_pct < policy.sm_share_min_pct:
        yield f"it has {around.sm_share_pct} % of the SMs"
    if gpu.state is not DeviceCondition.HEALTHY:
        yield f"the device is {gpu.state.value}" if gpu.state else "nobody watches the device"
    if gpu.budget_permille is not None and gpu.budget_permille < policy.budget_min_permille:
        yield f"the budget is {gpu.budget_permille / 10:.0f} %"
    if gpu.online_activity_pct is not None and gpu.online_activity_pct > policy.online_max_pct:
        yield f"online activity is {gpu.online_activity_pct:.0f} %"


def advance(memory: Measuring, stimulus: Sample | Ended, *, policy: ProfilePolicy) -> AloneOutcome:
    """Take one step. After a verdict nothing changes any more."""
    if memory.over:
        return AloneOutcome(memory)
    match stimulus:
        case Ended(interrupted=interrupted):
            memory, verdict = replace(memory, over=True), None if interrupted else _ended(memory, policy)
        case _:
            memory = _taken(memory, stimulus, policy)
            verdict = _judged(memory, policy) if memory.bounded or not stimulus.disturbance else None
    return AloneOutcome(replace(memory, over=True) if verdict else memory, verdict)


def validate(memory: Measuring) -> None:
    """Raise AssertionError if a rule is broken."""
    times = [sample.time_ns for sample in memory.samples]
    if times != sorted(set(times)):
        raise AssertionError("samples are in order, each once")
    if times and (memory.first_ns is None or memory.first_ns > times[0]):
        raise AssertionError("the first sample is the first")
    if memory.launched_ns is not None and memory.first_ns is not None and memory.launched_ns < memory.first_ns:
        raise AssertionError("a launch before the first sample")


def story(memory: Measuring, policy: ProfilePolicy) -> list[str]:
    """Tell what became of the time so far, one line for each reason, the longest first."""
    spent: Counter[str] = Counter()
    for before, after in pairwise(memory.samples):
        why = _why_not(memory, before, after, policy) or "counts"
        spent[why] += after.time_ns - before.time_ns
    return [f"{time_ns / _SECOND_NS:8.1f} s  {why}" for why, time_ns in spent.most_common()]


def profile(verdict: Verdict, *, key: str, gpu_kind: str, sm_share_pct: int | None, time_ns: int = 0) -> OfflineProfile:
    """Make the event."""
    figures = msgspec.structs.asdict(verdict.figures) if verdict.figures is not None else {}
    return OfflineProfile(
        key=key,
        gpu_kind=gpu_kind,
        sm_share_pct=sm_share_pct,
        confident=verdict.failure is None,
        failure=verdict.failure,
        time_ns=time_ns,
        **figures,
    )


def replaces(old: OfflineProfile | None, new: OfflineProfile, policy: ProfilePolicy) -> bool:
    """Whether a new profile says more than the present one: a failure never takes a good one's place, and one that says
    the same is no news.
    """
    if old is None or not old.confident:
        return old is None or new.confident or new.failure != old.failure
    if not new.confident:
        return False
    was, now = old.sm_share_pct or 100, new.sm_share_pct or 100
    if was != now:
        return now > was
    return any(
        abs((after or 0) - (before or 0)) > 2 * policy.error_max * (before or 0)
        for before, after in (
            (old.launches_per_s, new.launches_per_s),
            (old.memory_peak_bytes, new.memory_peak_bytes),
        )
    )


# --- taking samples


def _taken(memory: Measuring, sample: Sample, policy: ProfilePolicy) -> Measuring:
    samples = list(memory.samples)
    at = bisect.bisect_left(samples, sample.time_ns, key=lambda each: each.time_ns)
    if at == len(samples) or samples[at].time_ns != sample.time_ns:
        samples.insert(at, sample)
    oldest_ns = samples[-1].time_ns - int(2 * (policy.startup_s + policy.longest_s) * _SECOND_NS)
    return replace(
        memory,
        samples=tuple(samples[bisect.bisect_left(samples, oldest_ns, key=lambda each: each.time_ns) :]),
        first_ns=_earliest(memory.first_ns, sample.time_ns),
        launched_ns=_earliest(memory.launched_ns, sample.time_ns) if sample.usage.launches else memory.launched_ns,
        refused_bytes=max(memory.refused_bytes, sample.usage.refused_bytes),
    )


def _earliest(known_ns: int | None, time_ns: int) -> int:
    return time_ns if known_ns is None else min(known_ns, time_ns)


def _why_not(memory: Measuring, before: Sample, after: Sample, policy: ProfilePolicy) -> str:
    """Say why the time between two samples does not count; empty when it does."""
    if memory.launched_ns is None:
        return "nothing was launched"
    if before.time_ns < memory.launched_ns + int(policy.startup_s * _SECOND_NS):
        return "it began"
    if before.disturbance or after.disturbance:
        return before.disturbance or after.disturbance
    if after.time_ns - before.time_ns > policy.gap_s * _SECOND_NS:
        return "there was no telemetry"
    used = step(before, after)
    if used is None:
        return "its counters fell"
    return "it was frozen" if used.frozen_share > policy.frozen_max else ""


def _steps(memory: Measuring, policy: ProfilePolicy) -> Iterator[tuple[Step, Sample]]:
    """Give the steps that count, each with the sample at its end."""
    for before, after in pairwise(memory.samples):
        if not _why_not(memory, before, after, policy) and (used := step(before, after)) is not None:
            yield used, after


# --- judging


def _judged(memory: Measuring, policy: ProfilePolicy) -> Verdict | None:
    if memory.refused_bytes:
        failure = f"asked for {memory.refused_bytes / _MIB:.0f} MiB more than its quota"
        return Verdict(figures=_figures(memory, policy), failure=failure)
    assert memory.first_ns is not None  # noqa: S101 - a sample was taken
    newest_ns = memory.samples[-1].time_ns
    if memory.launched_ns is None:
        waited_s = (newest_ns - memory.first_ns) / _SECOND_NS
        if not memory.bounded or waited_s < policy.launch_within_s:
            return None
        return Verdict(figures=None, failure=f"launched nothing within {waited_s:.0f} s")
    figures = _figures(memory, policy)
    doubt = _doubt(figures, memory, policy)
    if not doubt:
        return Verdict(figures=figures)
    measured_s = figures.measured_s if figures is not None else 0.0
    spent_s = (newest_ns - memory.launched_ns) / _SECOND_NS if memory.bounded else measured_s
    return Verdict(figures=figures, failure=f"{doubt}, after {spent_s:.0f} s") if spent_s >= policy.longest_s else None


def _ended(memory: Measuring, policy: ProfilePolicy) -> Verdict | None:
    if memory.launched_ns is None:
        return Verdict(figures=None, failure="ended, and had launched nothing") if memory.bounded else None
    settled_ns = memory.launched_ns + int(policy.startup_s * _SECOND_NS)
    settled = [sample for sample in memory.samples if sample.time_ns >= settled_ns] or memory.samples[-1:]
    if not memory.bounded and any(sample.disturbance for sample in settled):
        return None  # it ran beside somebody, and nobody had promised to measure it
    figures = _figures(memory, policy)
    doubt = _doubt(figures, memory, policy) or "no telemetry of its last second"
    return Verdict(figures=figures, failure=f"ended too early: {doubt}")


def _doubt(figures: Figures | None, memory: Measuring, policy: ProfilePolicy) -> str:
    """Say what speaks against the figures; empty when nothing does."""
    if figures is None or figures.measured_s < policy.least_s or figures.samples < policy.windows:
        measured_s = figures.measured_s if figures is not None else 0.0
        return f"{measured_s:.1f} s count of the {policy.least_s:g} s that are needed{_because(memory, policy)}"
    if figures.launches_relative_error is None:
        return "it launches nothing any more"
    if figures.launches_relative_error > policy.error_max:
        return f"{figures.launches_per_s:.0f} launches/s ± {100 * figures.launches_relative_error:.0f} %"
    return f"its memory grows: {figures.memory_peak_bytes / _MIB:.0f} MiB" if _grows(memory, policy) else ""


def _because(memory: Measuring, policy: ProfilePolicy) -> str:
    """Name what has taken the most time away, start-up left out."""
    reasons = [line.split("s  ", 1)[1] for line in story(memory, policy)]
    told = next((reason for reason in reasons if reason not in ("counts", "it began", "nothing was launched")), None)
    return f" ({told})" if told else ""


def _grows(memory: Measuring, policy: ProfilePolicy) -> bool:
    held = [sample.usage.memory_bytes for sample in memory.samples]
    before, lately = held[: -policy.memory_samples], held[-policy.memory_samples :]
    return not before or max(lately) > (1 + policy.memory_growth_max) * max(before)


def _figures(memory: Measuring, policy: ProfilePolicy) -> Figures | None:
    """Work the figures out of the steps that count; None when there are none."""
    found = tuple(_steps(memory, policy))
    if not found:
        return None
    steps = [used for used, _ in found]
    readings = [sample.gpu for _, sample in found]
    measured_s = sum(used.seconds for used in steps)
    launches, busy_us = sum(used.launches for used in steps), sum(used.busy_us for used in steps)
    return Figures(
        utilization_pct=_mean([each.utilization_pct for each in readings]),
        sm_activity_pct=_mean([each.sm_activity_pct for each in readings]),
        sm_occupancy_pct=_mean([each.sm_occupancy_pct for each in readings]),
        memory_bandwidth_pct=_mean([each.memory_bandwidth_pct for each in readings]),
        memory_peak_bytes=max(sample.usage.memory_bytes for sample in memory.samples),
        busy_permille=min(1000, round(busy_us / measured_s / 1000)),
        kernel_time_us_mean=busy_us / launches if launches else None,
        launches_per_s=launches / measured_s,
        launches_relative_error=relative_error(steps, windows=policy.windows),
        measured_s=measured_s,
        samples=len(steps),
    )


def relative_error(steps: Sequence[Step], *, windows: int) -> float | None:
    """Standard error of launches per second relative to them, over `windows` windows or up to twice as many, of equally
    many steps each; None with fewer steps than windows, or without a launch.
    """
    length = len(steps) // windows
    if not length:
        return None
    whole = [steps[at : at + length] for at in range(0, len(steps) - length + 1, length)]
    rates = [sum(each.launches for each in part) / sum(each.seconds for each in part) for part in whole]
    mean = sum(rates) / len(rates)
    if not mean:
        return None
    variance = sum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1)
    return math.sqrt(variance / len(rates)) / mean


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
