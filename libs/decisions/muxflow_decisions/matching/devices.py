"""What the state of a watched device means for new offline work: whether it takes some, and how calm it is."""

from __future__ import annotations

from typing import Final

import msgspec

from muxflow.contracts import DeviceCondition, DeviceState, OnlineState

LOADS: Final = 5
"""Devices are told apart by a fifth of online activity: enough to prefer a calm one, few enough classes to match."""

_WORDS: Final = {
    DeviceCondition.INIT: "not ready yet",
    DeviceCondition.UNHEALTHY: "unhealthy",
    DeviceCondition.OVERLIMIT: "over its limit",
}


class Closed(msgspec.Struct, frozen=True):
    """A device takes no new offline work."""

    how: str
    """How it is, such as ``unhealthy``."""
    cause: str = ""

    def __str__(self) -> str:
        return f"{self.how}: {self.cause}" if self.cause else self.how


def closed(state: DeviceState | None, *, evicted_ns: int = 0) -> Closed | None:
    """Say why a watched device takes no new offline work; None if it is healthy.

    `evicted_ns` is when its node last put a job off it, by the node's clock as in `state`: what was healthy before that
    is not known to be so now. The job's end and the device's state travel apart, and either may come first.
    """
    if state is None:
        return Closed("not told of by a monitor yet")
    if state.state is DeviceCondition.DISABLED:
        return Closed(state.cause or "disabled")
    if state.state is not DeviceCondition.HEALTHY:
        return Closed(_WORDS[state.state], state.cause)
    if state.since_ns <= evicted_ns:
        return Closed("not known to be healthy again", "a job was evicted from it")
    return None


def load(*, watched: bool, online: OnlineState | None) -> int:
    """How busy the online side is at its peak, from 0 (calm) to `LOADS` - 1.

    What is watched and not known counts as busy; of a GPU that nobody watches nothing is ever known.
    """
    if not watched:
        return 0
    if online is None or online.activity_peak_pct is None:
        return LOADS - 1
    return min(LOADS - 1, int(online.activity_peak_pct * LOADS / 100))
