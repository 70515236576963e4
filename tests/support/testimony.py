"""Reads what `witness` wrote, and judges it."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


class Life(NamedTuple):
    """One attempt, from its first to its last sign of life (CLOCK_BOOTTIME, ns)."""

    attempt: str
    first_ns: int
    last_ns: int
    starts: int
    ended: bool
    """Whether it came to its own end."""


def lives(path: Path) -> list[Life]:
    """Give every attempt that left a sign, in order of its first."""
    signs: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for line in path.read_text().splitlines() if path.exists() else ():
        attempt, _pid, event, time_ns = line.split()
        signs[attempt].append((int(time_ns), event))
    found = [
        Life(
            attempt=attempt,
            first_ns=min(time_ns for time_ns, _ in seen),
            last_ns=max(time_ns for time_ns, _ in seen),
            starts=sum(event == "start" for _, event in seen),
            ended=any(event == "end" for _, event in seen),
        )
        for attempt, seen in signs.items()
    ]
    return sorted(found, key=lambda life: life.first_ns)


def overlaps(path: Path) -> list[str]:
    """List what must not be: two attempts alive at once, or one attempt started twice."""
    found = lives(path)
    wrong = [f"{path.name}: {life.attempt} was started {life.starts} times" for life in found if life.starts > 1]
    for earlier, later in pairwise(found):
        if later.first_ns < earlier.last_ns:
            ms = (earlier.last_ns - later.first_ns) / 1e6
            wrong.append(f"{path.name}: {later.attempt} began {ms:.1f} ms before the last sign of {earlier.attempt}")
    return wrong
