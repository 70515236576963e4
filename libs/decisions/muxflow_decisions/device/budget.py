"""The budget law: how much of a device offline work gets, from what the online side does.

**Model.** The online side is an open-loop load that uses a share d of the device; offline work takes whatever it may.
The sample at hand gives an estimate a of d (`attribution`) that is late (NVML's utilization is the mean of the last
1/6 s to 1 s), rounded to a per cent, and, since the estimate is corrected for it, does not depend on the budget.

**Feed-forward.** The budget that is wanted falls linearly with a, from the largest (a at most `activity_quiet_pct`) to
the smallest (a at least `activity_full_pct`). As a does not depend on the budget there is no loop through it, and no
gain at which it would oscillate. Offline kernels that take longer than their own baseline tell of a neighbour before
NVML does: 1 − 1/inflation of the device is somebody else's. They are believed unless the online side is known to be
idle, since a job also slows itself down (clocks, its own streams). While activity is not known the budget stays as it
was for a moment, unless the beacon tells of online launches, and is small after that.

**Beside the beacon** (`online_beacons`) there is nothing to feed forward. Offline gates hold while an online process is
active, within a fraction of a millisecond, so that only the time between its launches is left for offline work, and the
budget need not leave it any: it is `beacon_budget_permille`, whatever activity is, known or not. So idle capacity is
back as soon as a burst is over, not when the meters say so. A single process without the beacon, or none that anybody
can see, and activity counts again, at once. The states act on activity in any case.

**Trim.** Reports of the online services' latency depend on the budget, so here is a loop: the trim m, a factor between
0 and 1 on the budget, follows dm/dt = g (aim − ratio). Near the aim, a change of the budget by its whole range moves
the ratio by κ, T seconds late (half the report's window, half the time to the next one). An integrator with dead time
is stable for g κ T < π/2 and does not overshoot for g κ T ≤ 1/e. With g = 0.3/s, κ ≤ 1 (offline work at full budget
doubles the tail) and T ≤ 1.2 s this is 0.36: a gain margin of 4.3, so κ may be four times what was assumed. The trim
does not rise while something else holds the budget down (a state's cap, the rise): it would be wound up when that ends.
A latency that has crossed a limit of the state machine halves it, for the integrator alone would come back to the same
budget, and miss the target again and again.

**Down at once, up measured.** A smaller budget applies immediately, a larger one is approached at
`budget_rise_permille_per_s`, whatever the reason: after a burst the idle capacity is back within half a second and the
meter's own delay. What is wanted within `budget_band_permille` of what is there changes nothing, so that noise does not
reach the gate; only the largest and the smallest budget are always reached.

**The window** follows the budget linearly between its bounds: a small budget means that the online side is active, and
then little may be queued in front of it. Beside the beacon it is the smallest: a large budget does not mean there that
no burst is near, and what is queued when one begins is all of offline work that it meets.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from muxflow_decisions.device.policy import DevicePolicy
from muxflow_decisions.device.readings import Readings

_SECOND_NS: Final = 1_000_000_000
_JUST_LAUNCHED_US: Final = 100_000
_LONGEST_STEP_S: Final = 1.0
"""Time between two samples that is acted on: more says that the sampling stood still, not that it was calm."""


class BudgetMemory(msgspec.Struct, frozen=True, kw_only=True):
    """State of the law."""

    budget_permille: int = 0
    """What was given last; a frozen device has 0, and begins to rise from there."""
    trim: float = 1.0
    held_down: bool = True
    """What was given is smaller than the law wanted it: the latency says nothing about a larger budget then."""
    at_ns: int | None = None
    """When the law was last applied; None: never."""
    known_ns: int | None = None
    """When the online side's activity was last known; None: never."""
    beacons: bool = False
    """Every online process carried the beacon at the last sample."""


def apply(memory: BudgetMemory, readings: Readings, *, cap_permille: int, policy: DevicePolicy) -> BudgetMemory:
    """Take one sample in. `cap_permille` is what the device's state allows at most.

    With everything else equal, more online activity, a higher ratio or more inflation never give a larger budget.
    """
    elapsed_s = 0.0
    if memory.at_ns is not None:
        elapsed_s = min(max(readings.now_ns - memory.at_ns, 0) / _SECOND_NS, _LONGEST_STEP_S)
    trim = _trimmed(memory, readings.slo_ratio, elapsed_s, policy)
    wanted = _wanted_permille(memory, readings, trim, policy)
    cap = min(cap_permille, largest_permille(readings, policy))
    budget = _approached(memory.budget_permille, wanted, elapsed_s, cap, policy)
    return BudgetMemory(
        budget_permille=budget,
        trim=trim,
        held_down=budget <= wanted - policy.budget_band_permille,
        at_ns=readings.now_ns,
        known_ns=memory.known_ns if online_share_pct(readings, policy) is None else readings.now_ns,
        beacons=readings.online_beacons is True,
    )


def freeze(memory: BudgetMemory, *, now_ns: int) -> BudgetMemory:
    """Begin from nothing when the device opens again. The trim stays: the service that it is for is still there."""
    return replace(memory, budget_permille=0, held_down=True, at_ns=now_ns)


def halve(memory: BudgetMemory) -> BudgetMemory:
    """Take in that the budget was too large for the online side's latency."""
    return replace(memory, trim=memory.trim / 2)


def largest_permille(readings: Readings, policy: DevicePolicy) -> int:
    """Largest budget that the law gives."""
    return policy.beacon_budget_permille if readings.online_beacons else policy.budget_max_permille


def window_us(budget_permille: int, policy: DevicePolicy, *, beacons: bool = False) -> int:
    """Window that goes with a budget. `beacons` as in `BudgetMemory`."""
    if beacons:
        return policy.window_min_us
    low, high = policy.budget_min_permille, policy.budget_max_permille
    share = min(max((budget_permille - low) / (high - low), 0.0), 1.0) if high > low else 0.0
    return policy.window_min_us + int(share * (policy.window_max_us - policy.window_min_us))


def online_share_pct(readings: Readings, policy: DevicePolicy) -> float | None:
    """What the law takes the online side's activity to be; None when it is not known and somebody may be there."""
    if readings.online_present is False:
        return 0.0
    activity, inflation = readings.online_activity_pct, readings.inflation_permille
    if activity is None or activity <= policy.activity_quiet_pct or not inflation or inflation <= 1000:
        return activity
    return max(activity, 100.0 * (1.0 - 1000.0 / inflation))


def _wanted_permille(memory: BudgetMemory, readings: Readings, trim: float, policy: DevicePolicy) -> int:
    low, high = policy.budget_min_permille, largest_permille(readings, policy)
    share = online_share_pct(readings, policy)
    if readings.online_beacons:
        fed_forward = float(high)
    elif share is None:
        if _hidden_for_a_moment(memory, readings, policy):
            return memory.budget_permille
        fed_forward = float(min(policy.unknown_budget_permille, high))
    else:
        quiet, full = policy.activity_quiet_pct, policy.activity_full_pct
        idle = min(max((full - share) / (full - quiet), 0.0), 1.0)
        fed_forward = low + idle * (high - low)
    return max(int(fed_forward * trim), low)


def _hidden_for_a_moment(memory: BudgetMemory, readings: Readings, policy: DevicePolicy) -> bool:
    """Whether activity was known just now and nothing speaks against it: a kernel longer than the meter's period hides
    the online side while it runs. The budget then stays as it is.
    """
    age_us = readings.online_last_launch_age_us
    if memory.known_ns is None or (age_us is not None and age_us < _JUST_LAUNCHED_US):
        return False
    return readings.now_ns - memory.known_ns < policy.unknown_after_s * _SECOND_NS


def _trimmed(memory: BudgetMemory, ratio: float | None, elapsed_s: float, policy: DevicePolicy) -> float:
    if ratio is None:
        ratio = 0.0  # nobody to hold it against: let it go back
    elif ratio < policy.slo_aim_ratio and memory.held_down:
        return memory.trim
    change = policy.slo_gain_per_s * (policy.slo_aim_ratio - ratio) * elapsed_s
    return min(max(memory.trim + change, 0.0), 1.0)


def _approached(budget: int, wanted: int, elapsed_s: float, cap: int, policy: DevicePolicy) -> int:
    """Go from the budget that is given towards the one that is wanted, as far as cap and elapsed time allow."""
    at_bound = wanted <= policy.budget_min_permille or wanted >= cap or budget < policy.budget_min_permille
    if abs(wanted - budget) < policy.budget_band_permille and not at_bound and budget <= cap:
        return budget
    return min(wanted, cap, budget + int(policy.budget_rise_permille_per_s * elapsed_s))
