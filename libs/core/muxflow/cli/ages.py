"""Times for people: how long ago, and how long."""

from __future__ import annotations

import re
import time
from typing import Final

_SECONDS_OF: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


def parse_duration(text: str) -> float:
    """Read ``90s``, ``15m``, ``1.5h`` or ``7d`` as seconds. ValueError says how to write it."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip(), re.ASCII)
    if match is None or match[2] not in _SECONDS_OF:
        raise ValueError(f"{text!r} is not a duration; write a number and s, m, h or d, such as 15m")
    return float(match[1]) * _SECONDS_OF[match[2]]


def duration(seconds: float) -> str:
    """Say a duration with about two digits: ``0.4 s``, ``12 s``, ``5 min``, ``3 h``, ``2 d``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    for limit, unit_s, unit in ((100, 1, "s"), (6000, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def age(time_ns: int, now_ns: int | None = None) -> str:
    """Say how long ago a time is; ``-`` for a time that is not given. A clock that is ahead of ours counts as now."""
    if not time_ns:
        return "-"
    return duration(((time.time_ns() if now_ns is None else now_ns) - time_ns) / 1e9)
