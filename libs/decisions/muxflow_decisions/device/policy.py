"""Every threshold of the device machine and of the budget law, with unit, range and reason.

The paper's thresholds are not public. These are ours: configuration, usable as a section of settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.contracts.event import Percent, Permille
from muxflow_decisions.device.gate import WindowUs

DelayS = Annotated[float, Meta(ge=0, le=600)]
"""A short time, in seconds."""
CalmS = Annotated[float, Meta(ge=0, le=86_400)]
"""A time to wait for, in seconds."""
Ratio = Annotated[float, Meta(ge=0, le=100)]
Celsius = Annotated[float, Meta(ge=0, le=200)]
Mebibytes = Annotated[int, Meta(ge=0, le=2**24)]


class DevicePolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A limit is crossed when its reading has stayed beyond it for the delay; it holds until the reading is clear.

    Raises ValueError where two thresholds contradict each other; the message names the fields.
    """

    # --- online activity: the share of the device that the online side uses; never a total of the device
    activity_unhealthy_pct: Percent = 70.0
    """Above it too little is left for offline work to be worth the disturbance."""
    activity_unhealthy_clear_pct: Percent = 60.0
    activity_overlimit_pct: Percent = 90.0
    """Above it the online side needs the whole device: whatever runs beside it queues in front of it."""
    activity_overlimit_clear_pct: Percent = 70.0

    # --- the online services' own reports: worst latency / target
    slo_unhealthy_ratio: Ratio = 0.9
    slo_unhealthy_clear_ratio: Ratio = 0.8
    slo_overlimit_ratio: Ratio = 1.0
    """The target is missed: nothing offline has a claim any more."""
    slo_overlimit_clear_ratio: Ratio = 0.85

    # --- SM clock relative to its maximum; counts only while the online side is active, for an idle GPU clocks down
    clock_unhealthy_pct: Percent = 65.0
    """Boards at their power limit run at 70–90% of the highest clock under any full load, so only less is a sign."""
    clock_unhealthy_clear_pct: Percent = 75.0
    clock_overlimit_pct: Percent = 45.0
    """Online kernels take more than twice their time."""
    clock_overlimit_clear_pct: Percent = 65.0

    # --- temperature of the GPU
    temperature_unhealthy_c: Celsius = 87.0
    """Data-centre boards begin to slow down at 87–93 °C, and are rated for less in continuous work."""
    temperature_unhealthy_clear_c: Celsius = 82.0
    temperature_overlimit_c: Celsius = 93.0
    temperature_overlimit_clear_c: Celsius = 84.0

    # --- device memory
    memory_reserve_mib: Mebibytes = 256
    """Less than this free is exhausted: half a CUDA context, so the online side's next allocation may fail."""
    memory_clear_mib: Mebibytes = 512

    # --- how long a reading must stay beyond its limit, so that one noisy sample changes nothing
    unhealthy_after_s: DelayS = 0.3
    """Three samples at 10 Hz."""
    overlimit_after_s: DelayS = 2.0
    """The budget is at its smallest since the first sample of a burst: freezing adds little, and costs calm."""
    slow_after_s: DelayS = 1.5
    """For clock and temperature to be unhealthy: they are read at every fifth look, so this is three readings."""
    unknown_after_s: DelayS = 2.0
    """Online activity that cannot be read for this long, with an online service present, is unhealthy: long offline
    kernels hide it for a moment."""
    forget_after_s: CalmS = 30.0
    """A limit whose reading has been gone for this long no longer holds: the service that reported it has left."""

    # --- how long it must be calm
    settle_s: CalmS = 1.0
    """Before a device that was not watched is opened."""
    relax_s: CalmS = 2.0
    """Before an unhealthy device is healthy again."""
    readmit_s: Annotated[float, Meta(ge=0.01, le=86_400)] = 5.0
    """Before a device admits again after its first Overlimit; doubled with each recent one."""
    readmit_longest_s: CalmS = 300.0
    recent_s: CalmS = 900.0
    """An Overlimit is recent for this long."""
    gap_s: DelayS = 1.0
    """Samples further apart than this prove no calm in between."""

    # --- the budget law (`budget`)
    budget_max_permille: Permille = 900
    """Not the whole: what the online side does is seen best while nothing offline runs (see `attribution`)."""
    beacon_budget_permille: Permille = 1000
    """The largest where every online process carries the beacon: it shows what the online side does, and when."""
    budget_min_permille: Permille = 20
    """At full online activity; the machine freezes when that lasts."""
    activity_quiet_pct: Percent = 5.0
    """Up to here the online side is idle and the budget is the largest: readings are whole per cents, and noisy."""
    activity_full_pct: Percent = 90.0
    """From here on the budget is the smallest."""
    budget_rise_permille_per_s: Annotated[int, Meta(ge=1, le=100_000)] = 1800
    """From the smallest to the largest within half a second; downwards there is no limit."""
    budget_band_permille: Permille = 25
    """The budget is left alone while what the law wants is nearer than this: noise does not show on the gate."""
    slo_aim_ratio: Ratio = 0.8
    """The law trims the budget so that the worst latency stays here, below the thresholds above."""
    slo_gain_per_s: Annotated[float, Meta(ge=0, le=10)] = 0.3
    """Integral gain of that trim: share of the budget, per second and unit of ratio. See `budget` for its margin."""
    window_max_us: WindowUs = 2000
    """Enough that the device never waits for launches; what a burst finds queued is at most this and one kernel."""
    window_min_us: WindowUs = 500
    """Beside an online side that is active, and always beside the beacon, which stops what is not yet queued."""

    # --- what is left in the states that slow
    unhealthy_budget_permille: Permille = 100
    """The most while an unhealthy limit holds; once it is clear the law alone decides, and nobody is admitted yet."""
    unknown_budget_permille: Permille = 100
    """While online activity is not known and an online service may be there."""
    trickle_budget_permille: Annotated[int, Meta(ge=0, le=50)] = 50
    """In Overlimit and Disabled, for a job that is told to save its state."""

    def __post_init__(self) -> None:
        broken = next(_contradictions(self), None)
        if broken is not None:
            raise ValueError(broken)


_RISING = (
    ("activity_unhealthy_clear_pct", "activity_unhealthy_pct"),
    ("activity_overlimit_clear_pct", "activity_overlimit_pct"),
    ("activity_unhealthy_pct", "activity_overlimit_pct"),
    ("activity_quiet_pct", "activity_unhealthy_clear_pct"),
    ("slo_unhealthy_clear_ratio", "slo_unhealthy_ratio"),
    ("slo_overlimit_clear_ratio", "slo_overlimit_ratio"),
    ("slo_unhealthy_ratio", "slo_overlimit_ratio"),
    ("clock_overlimit_pct", "clock_overlimit_clear_pct"),
    ("clock_unhealthy_pct", "clock_unhealthy_clear_pct"),
    ("clock_overlimit_pct", "clock_unhealthy_pct"),
    ("temperature_unhealthy_clear_c", "temperature_unhealthy_c"),
    ("temperature_overlimit_clear_c", "temperature_overlimit_c"),
    ("temperature_unhealthy_c", "temperature_overlimit_c"),
    ("activity_quiet_pct", "activity_full_pct"),
)
"""Pairs of which the first must be less than the second."""
_ORDERED = (
    ("memory_reserve_mib", "memory_clear_mib"),
    ("readmit_s", "readmit_longest_s"),
    ("budget_min_permille", "budget_max_permille"),
    ("budget_max_permille", "beacon_budget_permille"),
    ("unhealthy_budget_permille", "budget_max_permille"),
    ("window_min_us", "window_max_us"),
)
"""Pairs of which the first must be at most the second."""


def _contradictions(policy: DevicePolicy) -> Iterator[str]:
    for low, high in _RISING:
        if not getattr(policy, low) < getattr(policy, high):
            yield f"{low} ({getattr(policy, low)}) must be less than {high} ({getattr(policy, high)})"
    for low, high in _ORDERED:
        if getattr(policy, low) > getattr(policy, high):
            yield f"{low} ({getattr(policy, low)}) must be at most {high} ({getattr(policy, high)})"
