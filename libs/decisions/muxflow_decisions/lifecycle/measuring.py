"""Whether a pending job is measured alone before it runs, and for how long it waits for that.

Measuring makes for better placements and is never a condition for running: see docs/placing.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum

import msgspec

from muxflow.contracts import OfflineProfile


class Spots(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs of living nodes that fit a job, counted, whether or not they are free."""

    fitting: int
    watched: int
    """Those that a monitor watches: nobody else can measure."""
    quiet: int
    """Those of the watched that serve no online workload, or have not told yet whether they do."""


class Turn(StrEnum):
    """Which GPUs will do for a job that has not been measured."""

    ALONE = "alone"
    """Only one where it can be measured."""
    AFTER = "after"
    """None yet: another job of its profile key is measured first."""
    ANYWHERE = "anywhere"
    """Any that fits."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How an unmeasured job waits."""

    turn: Turn
    why: str = ""
    """Why it is not measured before it runs, if it isn't."""
    until_ns: int = 0
    """When this ends, at the latest; 0: it doesn't by time alone."""


def plan(spots: Spots, *, behind: bool, since_ns: int, now_ns: int, patience_ns: int) -> Plan:
    """Decide how a job waits that has no profile.

    `behind` tells that another job of its profile key is being measured, or is before it in the queue for that.
    `since_ns` is when it could have been placed for the first time since it last ran.
    """
    if spots.fitting and not spots.watched:
        return Plan(turn=Turn.ANYWHERE, why="no GPU that fits is watched by a monitor, which is what measures")
    if spots.fitting and not spots.quiet:
        return Plan(turn=Turn.ANYWHERE, why="every GPU that fits serves an online workload")
    until_ns = since_ns + patience_ns
    if not since_ns <= now_ns < until_ns:  # nor does it wait longer because the clock was set back
        waited = f"{patience_ns / 1e9:g} s"
        if behind:
            return Plan(
                turn=Turn.ANYWHERE, why=f"another job of its profile key was still to be measured after {waited}"
            )
        return Plan(turn=Turn.ANYWHERE, why=f"no GPU without an online workload was free within {waited}")
    return Plan(turn=Turn.AFTER if behind else Turn.ALONE, until_ns=until_ns)


def verdict(profiles: Iterable[OfflineProfile], kinds: Collection[str]) -> OfflineProfile | None:
    """Find what is known of a profile key, for jobs that run on these GPU kinds (none: on any).

    A confident profile, else one that says why it could not be measured; None while neither is there.
    """
    told = [each for each in profiles if not kinds or each.gpu_kind in kinds]
    confident = next((each for each in told if each.confident), None)
    return confident or next((each for each in told if each.failure is not None), None)
